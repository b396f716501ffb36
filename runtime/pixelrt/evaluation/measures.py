"""The measures: IoU of masks, panoptic quality and mean IoU of classes (COCO), region and contour accuracy (DAVIS).

Masks are (H, W) bool.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CONTOUR_SLACK = 0.008  # of the picture's diagonal: how far off a contour may be and still count (DAVIS)

Bits = NDArray[np.bool_]
Labels = NDArray[np.integer]
Counts = NDArray[np.float64]  # (classes, 4): summed IoU, matches, invented, missed


def iou(a: Bits, b: Bits) -> float:
    """Two empty masks agree."""
    both, either = overlap(a, b)
    return both / either if either else 1.0


def overlap(a: Bits, b: Bits) -> tuple[int, int]:
    """Pixels in both and in either."""
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))


def cumulative_iou(pairs: Sequence[tuple[int, int]]) -> float:
    """cIoU of `overlap`s: sum of intersections / sum of unions."""
    both, either = sum(b for b, _ in pairs), sum(e for _, e in pairs)
    return both / either if either else 1.0


def ious(pairs: Sequence[tuple[int, int]]) -> list[float]:
    """IoU of each of `overlap`s; gIoU is their mean. Two empty masks agree."""
    return [both / either if either else 1.0 for both, either in pairs]


def union_of(masks: Sequence[Bits], size: tuple[int, int]) -> Bits:
    return np.asarray(np.any(masks, axis=0)) if len(masks) else np.zeros(size, np.bool_)


# ---- panoptic quality -------------------------------------------------------------------------------------


def counts(
    truth: Labels,
    wanted: Mapping[int, int],
    drawn: Labels,
    found: Mapping[int, int],
    classes: int,
    crowds: Collection[int] = (),
    void: int | None = None,
) -> Counts:
    """Of one picture. truth, drawn (H, W): number of each pixel's segment; wanted, found: number -> class.

    A pair of one class matches where its IoU is above 1/2; as segments are disjoint, each matches at most once. Pixels
    of `void` in truth belong to no union. crowds: numbers of `wanted` that cannot be matched or missed. A segment
    of which more than half lies on void and on crowds of its class is no invention.

    Source: `panopticapi`, pq_compute_single_core.
    """
    table, crowds = np.zeros((classes, 4)), set(crowds)
    areas, areas_drawn, shared = _areas(truth), _areas(drawn), _shared(truth, drawn)

    def ignored(number: int) -> int:
        return 0 if void is None else shared.get((void, number), 0)

    matched: dict[int, int] = {}  # truth -> drawn
    for (number, other), both in shared.items():
        if number in crowds or wanted.get(number) is None or wanted[number] != found.get(other):
            continue
        value = both / (areas[number] + areas_drawn[other] - both - ignored(other))
        if value > 0.5:
            matched[number] = other
            table[wanted[number], :2] += value, 1
    for number, kind in wanted.items():
        table[kind, 3] += number not in matched and number not in crowds
    taken = set(matched.values())
    for other, kind in found.items():
        excused = ignored(other) + sum(shared.get((c, other), 0) for c in crowds if wanted[c] == kind)
        table[kind, 2] += other not in taken and 2 * excused <= areas_drawn.get(other, 0)
    return table


def quality(table: Counts) -> tuple[float, float, float]:
    """Panoptic, segmentation and recognition quality, means over the classes that occur."""
    total, right, invented, missed = table.T
    occurs = right + invented + missed > 0
    among = np.maximum(right + (invented + missed) / 2, 1e-9)
    parts = total / among, total / np.maximum(right, 1e-9), right / among
    pq, sq, rq = (float(part[occurs].mean()) if occurs.any() else 0.0 for part in parts)
    return pq, sq, rq


def class_overlaps(truth: Labels, drawn: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, 3) pixels of one picture: right, of the class in truth, drawn as it. Truth outside 0..classes - 1 is
    not looked at."""
    judged = (truth >= 0) & (truth < classes)
    of, as_ = truth[judged], drawn[judged]
    columns = (of[of == as_], of, as_)
    return np.stack([np.bincount(c.astype(np.int64), minlength=classes) for c in columns], axis=1)


def mean_class_iou(table: NDArray[np.int64]) -> float:
    """Of summed `class_overlaps`, over the classes that occur in truth (detectron2, SemSegEvaluator)."""
    right, of, as_ = table[table[:, 1] > 0].T
    return float((right / (of + as_ - right)).mean()) if len(right) else 0.0


def _areas(labels: Labels) -> dict[int, int]:
    numbers, areas = np.unique(labels, return_counts=True)
    return dict(zip(numbers.tolist(), areas.tolist(), strict=True))


def _shared(a: Labels, b: Labels) -> dict[tuple[int, int], int]:
    """Pixels of every pair of numbers that meet."""
    pairs, areas = np.unique(a.astype(np.int64) << 32 | b.astype(np.int64), return_counts=True)
    return {(int(p >> 32), int(p & 0xFFFFFFFF)): int(n) for p, n in zip(pairs, areas, strict=True)}


# ---- video ------------------------------------------------------------------------------------------------


def contour(mask: Bits) -> Bits:
    """Pixels that differ from their right, lower or lower right neighbour, as DAVIS draws it."""
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return np.asarray((mask ^ wide[:-1, 1:]) | (mask ^ wide[1:, :-1]) | (mask ^ wide[1:, 1:]))


def contour_accuracy(want: Bits, got: Bits) -> float:
    """F: of the shares of either contour that lie within the slack of the other."""
    slack = math.ceil(CONTOUR_SLACK * math.hypot(*want.shape))
    ours, theirs = contour(got), contour(want)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any():
        return 0.0
    precision = float(dilated(theirs, slack)[ours].mean())
    recall = float(dilated(ours, slack)[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def dilated(mask: Bits, radius: int) -> Bits:
    """Pixels no farther than `radius` from one of the mask: a disc, made of rows."""
    height, width = mask.shape
    before = np.zeros((height, width + 1), np.int32)  # pixels of the row before each place
    np.cumsum(mask, axis=1, out=before[:, 1:])
    out, at = np.zeros_like(mask), np.arange(width)
    for shift in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        half = math.isqrt(radius * radius - shift * shift)
        row = before[:, np.minimum(at + half + 1, width)] > before[:, np.maximum(at - half, 0)]
        out[max(shift, 0) : height + min(shift, 0)] |= row[max(-shift, 0) : height - max(shift, 0)]
    return out
