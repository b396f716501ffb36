"""The papers' measures: IoU of masks, panoptic quality (COCO), region and contour accuracy of videos (DAVIS).

Masks are (H, W) bool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

CONTOUR_SLACK = 0.008  # of the picture's diagonal: how far off a contour may be and still count (DAVIS)

Counts = np.ndarray  # (classes, 4): summed IoU, matches, invented, missed


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Two empty masks agree."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def union_of(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.any(masks, axis=0) if len(masks) else np.zeros(size, bool)


def mean_and_error(values: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Mean of (seed, value) pairs, and its standard error with the values of one seed as one cluster."""
    if not values:
        return None
    mean = sum(v for _, v in values) / len(values)
    residuals: dict[int, float] = {}
    for seed, v in values:
        residuals[seed] = residuals.get(seed, 0.0) + v - mean
    return round(mean, 4), round(math.sqrt(sum(r * r for r in residuals.values())) / len(values), 4)


# ---- panoptic quality -------------------------------------------------------------------------------------


def counts(
    truth: Mapping[int, tuple[int, np.ndarray]], found: Sequence[tuple[int, np.ndarray]], classes: int
) -> Counts:
    """Of one scene. truth: label -> class and mask; found: the same, masks disjoint.

    Disjoint masks match at most once above IoU 0.5, so no assignment is to be found.
    """
    table, taken = np.zeros((classes, 4)), set()
    for number, got in found:
        match = next((k for k, (n, want) in truth.items() if n == number and iou(got, want) > 0.5), None)
        if match is None or match in taken:
            table[number, 2] += 1
        else:
            taken.add(match)
            table[number, :2] += iou(got, truth[match][1]), 1
    for label, (number, _) in truth.items():
        table[number, 3] += label not in taken
    return table


def quality(table: Counts) -> tuple[float, float, float]:
    """Panoptic, segmentation and recognition quality, means over the classes that occur."""
    total, right, invented, missed = table.T
    occurs = right + invented + missed > 0
    among = np.maximum(right + (invented + missed) / 2, 1e-9)
    parts = total / among, total / np.maximum(right, 1e-9), right / among
    pq, sq, rq = (float(part[occurs].mean()) if occurs.any() else 0.0 for part in parts)
    return pq, sq, rq


# ---- video ------------------------------------------------------------------------------------------------


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour, as DAVIS draws it."""
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ wide[:-1, 1:]) | (mask ^ wide[1:, :-1]) | (mask ^ wide[1:, 1:])


def contour_accuracy(want: np.ndarray, got: np.ndarray) -> float:
    """F: of the shares of either contour that lie within the slack of the other."""
    slack = math.ceil(CONTOUR_SLACK * math.hypot(*want.shape))
    ours, theirs = contour(got), contour(want)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any():
        return 0.0
    near = [distance_transform_edt(~line) <= slack for line in (theirs, ours)]
    precision, recall = near[0][ours].mean(), near[1][theirs].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
