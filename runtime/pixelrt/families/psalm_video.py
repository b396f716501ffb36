"""Objects through a video, by the original's memory rule (its DAVIS evaluation).

The objects of a frame are looked for by region vectors: of the marked picture at first, later of the frame before,
from the masks predicted there. Those are used only while each object has a mask and no two masks coincide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels.upsample_mask.probability import probability

from pixelrt.engine import Value
from pixelrt.families.psalm_masks import Enlarged, Sizes, ranked
from pixelrt.masks import Mask
from pixelrt.results import Tracked

CANDIDATES = 10  # queries an object may choose from
IOU_MAX = 0.4  # of two objects' masks, for them to be remembered

Bits = NDArray[np.bool_]
Floats = NDArray[np.float32]


def tracked(logits: Value, scores: Floats, labels: Sequence[str], sizes: Sizes) -> Tracked:
    """scores (Q, R). Object after object takes the best query that none before it took.

    An object whose CANDIDATES are all taken gets the best of them.
    """
    chance, enlarged = probability(scores), Enlarged(logits, sizes)
    taken: list[tuple[int, float]] = []
    for r in range(scores.shape[1]):
        used = {q for q, _ in taken}
        # Among one more than there are taken, one is free.
        candidates = ranked(chance[:, r], enlarged, min(CANDIDATES, len(used) + 1))
        taken.append(next((one for one in candidates if one[0] not in used), candidates[0]))
    masks = enlarged.masks([(q, score, label) for (q, score), label in zip(taken, labels, strict=True)])
    return Tracked(masks, fused(masks, sizes.original))


def fused(masks: Sequence[Mask], size: tuple[int, int]) -> NDArray[np.int32]:
    """(H, W): number of the last object, from 1, that covers a pixel."""
    drawn = np.zeros(size, np.int32)
    for number, mask in enumerate(masks, start=1):
        drawn[mask.mask] = number
    return drawn


def distinct(masks: Sequence[Bits]) -> bool:
    """Whether every mask has pixels and no two overlap by more than IOU_MAX."""
    if not all(mask.any() for mask in masks):
        return False
    return all(iou(a, b) <= IOU_MAX for a, b in combinations(masks, 2))


def iou(a: Bits, b: Bits) -> float:
    """Pixels in both over pixels in either."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
