"""Which masks PSALM's original draws from its decoder's outputs, query by query, each at the picture's size.

Source: `panoptic_inference`, `instance_inference`, `semantic_inference`, `SEG_instance_inference`, `region_inference`.
The runtime (`pixelrt.families.psalm_masks`) selects first and resizes in bands; nothing of it is used here.
Letters: Q mask queries, K conditions. `enlarge(q)` gives the logits (H, W) of a query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pixelrt.queries import Classes, Query, Refer
from torch import Tensor

Enlarge = Callable[[int], Tensor]
# What was chosen (queries and class), and its mask (H, W) bool.
Drawn = tuple[tuple[int, ...], np.ndarray]
CLASSES_AT_ONCE = 16


def draw(query: Query, scores: Tensor, enlarge: Enlarge) -> list[Drawn]:
    """scores (Q, K), for classes with the background last. The masks in the order of the answers."""
    if isinstance(query, Classes):
        rule = {"panoptic": panoptic, "instance": instances, "semantic": semantic}[query.task]
        return rule(query, scores.softmax(-1), enlarge)
    chance = scores.sigmoid()
    if isinstance(query, Refer):
        return referred(query, chance[:, 0], enlarge)
    best = [ranked(chance[:, r], enlarge, 1)[0] for r in range(chance.shape[1])]
    return [((q, r), mask) for r, (q, _, mask) in enumerate(best)]


def mean_probability(logits: Tensor) -> float:
    """Inside the mask."""
    inside = logits > 0
    return float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))


def ranked(chance: Tensor, enlarge: Enlarge, count: int) -> list[tuple[int, float, np.ndarray]]:
    """(query, chance * mean probability, mask) of the `count` best."""
    found: list[tuple[int, float, np.ndarray]] = []
    for q in chance.argsort(descending=True).tolist():
        if len(found) >= count and float(chance[q]) < found[count - 1][1]:
            break  # a mean probability is 1 at most
        logits = enlarge(q)
        found.append((q, float(chance[q]) * mean_probability(logits), (logits > 0).numpy()))
        found = sorted(found, key=lambda one: -one[1])[:count]
    return found


def referred(query: Refer, chance: Tensor, enlarge: Enlarge) -> list[Drawn]:
    found = ranked(chance, enlarge, max(1, int((chance > 0.6).sum())) if query.several else 1)
    if query.several:
        found = [one for one in found if one[1] > 0.6] or found[:1]
    return [((q,), mask) for q, _, mask in found] if found[0][1] >= query.none_below else []


def panoptic(query: Classes, chance: Tensor, enlarge: Enlarge) -> list[Drawn]:
    score, kind = chance.max(-1)
    kept = [q for q in range(len(chance)) if kind[q] != chance.shape[1] - 1 and score[q] > 0.8]
    owner, best, masks = torch.tensor(0), torch.tensor(-1.0), []
    for k, q in enumerate(kept):  # the first of equals wins, as torch's argmax does
        probability = enlarge(q).sigmoid()
        masks.append(probability >= 0.5)
        ahead = score[q] * probability > best
        owner, best = torch.where(ahead, k, owner), torch.where(ahead, score[q] * probability, best)
    found: list[Drawn] = []
    stuff: dict[int, int] = {}
    for k, q in enumerate(kept):
        won, whole, final = int((owner == k).sum()), int(masks[k].sum()), (owner == k) & masks[k]
        if not (won and whole and final.any()) or won / whole < 0.8:
            continue
        number = int(kind[q])
        if number in stuff:
            chosen, mask = found[stuff[number]]
            found[stuff[number]] = (*chosen, q), mask | final.numpy()
            continue
        if not query.is_thing(number):
            stuff[number] = len(found)
        found.append(((number, q), final.numpy()))
    return found


def instances(query: Classes, chance: Tensor, enlarge: Enlarge) -> list[Drawn]:
    classes = chance.shape[1] - 1
    values, pairs = chance[:, :classes].flatten().topk(len(chance))
    found: list[tuple[float, Drawn]] = []
    for value, pair in zip(values.tolist(), pairs.tolist(), strict=True):
        logits = enlarge(pair // classes)
        score = value * mean_probability(logits)
        if score >= query.min_score:
            found.append((score, ((pair // classes, pair % classes), (logits > 0).numpy())))
    return [one for _, one in sorted(found, key=lambda one: -one[0])]


def semantic(query: Classes, chance: Tensor, enlarge: Enlarge) -> list[Drawn]:
    weights = chance[:, :-1]
    best, kind = torch.tensor(-1.0), torch.tensor(0)
    for start in range(0, weights.shape[1], CLASSES_AT_ONCE):
        part = weights[:, start : start + CLASSES_AT_ONCE]
        total = sum(w[:, None, None] * enlarge(q).sigmoid() for q, w in enumerate(part))
        value, at = torch.as_tensor(total).max(0)
        ahead = value > best
        best, kind = torch.where(ahead, value, best), torch.where(ahead, start + at, kind)
    areas = torch.bincount(kind.flatten(), minlength=weights.shape[1])
    order = areas.argsort(descending=True, stable=True)[: int((areas > 0).sum())]
    return [((k,), (kind == k).numpy()) for k in order.tolist()]


def aligned(masks: list[np.ndarray], like: list[np.ndarray]) -> list[np.ndarray]:
    """`masks` in the order of `like`, for scores that are nearly equal may change places."""
    left, found = list(masks), []
    for wanted in like:
        if not left:
            break
        same = [i for i, mask in enumerate(left) if mask.shape == wanted.shape and apart(mask, wanted) == 0]
        at = same[0] if same else min(range(len(left)), key=lambda i: apart(left[i], wanted))
        found.append(left.pop(at))
    return found + left


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Part of the pixels of either that only one has."""
    if a.shape != b.shape:
        return 1.0
    either = int((a | b).sum())
    return int((a ^ b).sum()) / either if either else 0.0
