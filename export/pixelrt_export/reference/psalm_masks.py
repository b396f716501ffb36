"""What PSALM makes of its decoder's masks and scores, rule by rule as the original has it, masks at the picture's size.

scores (Q, K): dot products with the conditions. Source: `panoptic_inference`, `instance_inference`,
`semantic_inference`, `SEG_instance_inference`, `region_inference` of the original. The runtime
(`pixelrt.families.psalm_masks`) selects first and resizes in bands; nothing of it is used here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pixelrt.queries import Classes, Query, Refer
from torch import Tensor

CLASS_SCORE_MIN, OVERLAP_MIN, SEVERAL_SCORE_MIN = 0.8, 0.8, 0.6
# What was decided (a query; in answers about classes, the class), and its mask (H, W) bool.
Drawn = tuple[int, np.ndarray]


@dataclass(frozen=True)
class Planes:
    """Mask logits (Q, h, w) of a padded square; the picture fills `fitted` of it and is `original` large."""

    low: Tensor
    fitted: tuple[int, int]
    original: tuple[int, int]

    def __call__(self, query: int) -> Tensor:
        """(H, W)"""
        return self.enlarged(self.content(query))

    def content(self, query: int) -> Tensor:
        """(h', w')"""
        side = max(self.fitted)
        return resized(self.low[query], (side, side))[: self.fitted[0], : self.fitted[1]]

    def enlarged(self, plane: Tensor) -> Tensor:
        return resized(plane, self.original)


def resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def draw(query: Query, scores: Tensor, masks: Planes) -> list[Drawn]:
    """scores (Q, K), for classes with the background last. The masks in the order of the answers."""
    if isinstance(query, Classes):
        rule = {"panoptic": panoptic, "instance": instances, "semantic": semantic}[query.task]
        return rule(query, scores.softmax(-1), masks)
    chance = scores.sigmoid()
    if isinstance(query, Refer):
        return referred(query, chance[:, 0], masks)
    best = [ranked(chance[:, r], masks, 1)[0] for r in range(chance.shape[1])]
    return [(q, mask) for q, _, mask in best]


def mean_probability(logits: Tensor) -> float:
    """Inside the mask."""
    inside = logits > 0
    return float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))


def ranked(chance: Tensor, masks: Planes, count: int) -> list[tuple[int, float, np.ndarray]]:
    """(query, chance * mean probability, mask) of the `count` best."""
    found: list[tuple[int, float, np.ndarray]] = []
    for q in chance.argsort(descending=True).tolist():
        if len(found) >= count and float(chance[q]) < found[count - 1][1]:
            break  # a mean probability is 1 at most
        logits = masks(q)
        found.append((q, float(chance[q]) * mean_probability(logits), (logits > 0).numpy()))
        found = sorted(found, key=lambda one: -one[1])[:count]
    return found


def referred(query: Refer, chance: Tensor, masks: Planes) -> list[Drawn]:
    found = ranked(chance, masks, max(1, int((chance > SEVERAL_SCORE_MIN).sum())) if query.several else 1)
    if query.several:
        found = [one for one in found if one[1] > SEVERAL_SCORE_MIN] or found[:1]
    return [(q, mask) for q, _, mask in found] if found[0][1] >= query.none_below else []


def panoptic(query: Classes, chance: Tensor, masks: Planes) -> list[Drawn]:
    score, kind = chance.max(-1)
    kept = [q for q in range(len(chance)) if kind[q] != chance.shape[1] - 1 and score[q] > CLASS_SCORE_MIN]
    owner, best, inside = torch.tensor(0), torch.tensor(-1.0), []
    for k, q in enumerate(kept):  # the first of equals wins, as torch's argmax does
        probability = masks(q).sigmoid()
        inside.append(probability >= 0.5)
        ahead = score[q] * probability > best
        owner, best = torch.where(ahead, k, owner), torch.where(ahead, score[q] * probability, best)
    found: list[Drawn] = []
    stuff: dict[int, int] = {}
    for k, q in enumerate(kept):
        won, whole, final = int((owner == k).sum()), int(inside[k].sum()), (owner == k) & inside[k]
        if not (won and whole and final.any()) or won / whole < OVERLAP_MIN:
            continue
        number = int(kind[q])
        if number in stuff:
            found[stuff[number]] = number, found[stuff[number]][1] | final.numpy()
            continue
        if not query.is_thing(number):
            stuff[number] = len(found)
        found.append((number, final.numpy()))
    return found


def instances(query: Classes, chance: Tensor, masks: Planes) -> list[Drawn]:
    classes = chance.shape[1] - 1
    values, pairs = chance[:, :classes].flatten().topk(len(chance))
    found: list[tuple[float, Drawn]] = []
    for value, pair in zip(values.tolist(), pairs.tolist(), strict=True):
        logits = masks(pair // classes)
        score = value * mean_probability(logits)
        if score >= query.min_score:
            found.append((score, (pair % classes, (logits > 0).numpy())))
    return [one for _, one in sorted(found, key=lambda one: -one[0])]


def semantic(query: Classes, chance: Tensor, masks: Planes) -> list[Drawn]:
    """Where this is the task, classes are summed up at the network's size and resized after that."""
    best, kind = torch.tensor(-1.0), torch.tensor(0)
    weights = chance[:, :-1]
    total = torch.zeros(weights.shape[1], *masks.fitted)
    for q, weight in enumerate(weights):
        total += weight[:, None, None] * masks.content(q).sigmoid()
    for k, plane in enumerate(total):  # the first of equals wins
        value = masks.enlarged(plane)
        ahead = value > best
        best, kind = torch.where(ahead, value, best), torch.where(ahead, k, kind)
    areas = torch.bincount(kind.flatten(), minlength=weights.shape[1])
    order = areas.argsort(descending=True, stable=True)[: int((areas > 0).sum())]
    return [(k, (kind == k).numpy()) for k in order.tolist()]


def region_vectors(tokens: Tensor, regions: list[Tensor], side: int) -> Tensor:
    """(R, H) means of the image tokens (T, H), read bilinearly at the pixels of each region (h', w') bool.

    A pixel (y, x) of the network's input reads at (y, x) / side of the way from the first token to the last. The
    original draws 256 pixels of a region; this is what that is on average.
    """
    grid = round(len(tokens) ** 0.5)
    plane = tokens.T.reshape(1, -1, grid, grid)
    rows = []
    for region in regions:
        at = region.nonzero().flip(-1).float() / side * 2 - 1  # x, y from -1 to 1
        read = F.grid_sample(plane, at[None, None], mode="bilinear", align_corners=True)
        rows.append(read[0, :, 0].mean(-1))
    return torch.stack(rows)
