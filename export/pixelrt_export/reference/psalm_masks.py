"""What PSALM makes of its decoder's masks and scores, rule by rule as the original has it.

masks (Q, H, W) logits at the picture's size; scores (Q, K) dot products with the conditions. Source:
`panoptic_inference`, `SEG_instance_inference`, `region_inference` of the original; every class counts as a thing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelrt_export.reference.preprocess import mask_scores

CLASS_SCORE_MIN, OVERLAP_MIN = 0.8, 0.8


def best_query(scores: Tensor, mask: Callable[[int], Tensor]) -> int:
    """scores (Q,) of one condition: the query with the highest chance * mean probability inside its mask."""
    chance = scores.sigmoid()
    best, found = -1.0, -1
    for query in chance.argsort(descending=True).tolist():
        if chance[query] < best:
            break  # a mean probability is 1 at most
        score = float(chance[query] * mask_scores(mask(query)[None])[0])
        if score > best:
            best, found = score, query
    return found


def panoptic(masks: Tensor, scores: Tensor) -> tuple[list[int], Tensor]:
    """scores: the background last. Classes of the segments, in the order of their queries; (S, H, W) bool."""
    best, category = scores.softmax(-1).max(-1)
    kept = (category != scores.shape[1] - 1) & (best > CLASS_SCORE_MIN)
    best, category, inside = best[kept], category[kept], masks[kept].sigmoid()
    found: list[int] = []
    segments = [inside.new_zeros((0, *masks.shape[1:]), dtype=torch.bool)]
    if len(inside):
        owner = (best[:, None, None] * inside).argmax(0)
        for k, chance in enumerate(inside):
            whole, won = int((chance >= 0.5).sum()), int((owner == k).sum())
            segment = (owner == k) & (chance >= 0.5)
            if whole and won and segment.any() and won / whole >= OVERLAP_MIN:
                found.append(int(category[k]))
                segments.append(segment[None])
    return found, torch.cat(segments)


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
