"""value[c, y, x] = sum over n of weight[n, c] * sigmoid(mask[n, y, x])     (numpy, the specification)

`class_bands` gives the values, `class_map` the class of the largest.

    order `logits`          mask = out of chain.py, so the sum is made at H x W
    order `probabilities`   the sum is made at h' x w', from masks of that size, and resized to H x W after it

Source: PSALM, `semantic_inference`: the first order in its panoptic mode, the second where the task is semantic.
C planes of H x W would be 490 MB for 133 classes at 720 x 1280: there is one band of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.upsample_mask.chain import Chain
from pixelrt_kernels.upsample_mask.probability import Floats, probability

ORDERS = ("logits", "probabilities")
BAND_VALUES = 1 << 22  # of all masks, or all classes, in one band: 16 MiB of float32


class ClassMap(NamedTuple):
    best: NDArray[np.int32]  # (H, W) class with the largest value, the first of equals
    area: NDArray[np.int64]  # (C,) its pixels
    share: NDArray[np.float64]  # (C,) mean over the class's pixels of its value / sum of all classes' values


class Steps(Protocol):
    """The two resizing steps of N masks at once."""

    def probabilities(self, low_res: Floats, part: slice) -> Floats:
        """Rows `part` of the content, (N, rows, w'), as probabilities, from planes (N, h, w) of logits."""
        ...

    def enlarged(self, values: Floats, first: int, part: slice) -> Floats:
        """Rows `part` of the output, (C, rows, W), from rows (C, ..., w') of the content that begin with `first`."""
        ...


@dataclass(frozen=True)
class NumpySteps:
    chain: Chain

    def probabilities(self, low_res: Floats, part: slice) -> Floats:
        return np.stack([probability(self.chain.content_rows(plane, part)) for plane in low_res])

    def enlarged(self, values: Floats, first: int, part: slice) -> Floats:
        return np.stack([self.chain.enlarged(plane, first, part) for plane in values])


def class_map(
    low_res: Floats,
    weights: Floats,
    square: int,
    content: tuple[int, int],
    original: tuple[int, int],
    steps: Steps | None = None,
) -> ClassMap:
    """Arguments and errors of `class_bands`, in the order `probabilities`. steps: numpy's, if None.

    A class whose values in a band stay below a quarter of the smallest winner there is not resized: each pixel is
    a mean of four with one weight of a quarter or more, so the winner at that one is worth more than this class.
    """
    chain = Chain.of(low_res, square, content, original)
    by_class = _by_class(low_res, weights)
    steps = steps or NumpySteps(chain)
    best = np.empty(original, np.int32)
    area, share = np.zeros(len(by_class), np.int64), np.zeros(len(by_class))
    for part in chain.bands(_band_pixels(by_class, content, original)):
        source = chain.source_rows(part)
        values = _summed(by_class, steps.probabilities(low_res, source))
        floor = values.max(0).min() * np.float32(0.2499)  # a little less, for the rounding of the weights
        total = steps.enlarged(values.sum(0)[None], source.start, part)[0]
        winner = np.full((part.stop - part.start, original[1]), -1, np.float32)
        candidates = np.flatnonzero(values.max((1, 2)) >= floor)
        for k, rows in zip(candidates, steps.enlarged(values[candidates], source.start, part), strict=True):
            better = rows > winner
            np.copyto(winner, rows, where=better)
            best[part][better] = k
        area += np.bincount(best[part].ravel(), minlength=len(area))
        share += np.bincount(best[part].ravel(), (winner / total).ravel(), len(share))
    return ClassMap(best, area, share / np.maximum(area, 1))


def class_bands(
    low_res: Floats,
    weights: Floats,
    square: int,
    content: tuple[int, int],
    original: tuple[int, int],
    order: str = "probabilities",
) -> Iterator[tuple[slice, Floats]]:
    """Rows of the picture and their values (C, rows, W), band after band. low_res (N, h, w), weights (N, C).

    Raises:
        ValueError: sizes or an order that make no sense, or no weights for some mask.
    """
    chain = Chain.of(low_res, square, content, original)
    by_class = _by_class(low_res, weights)
    steps = NumpySteps(chain)
    if order not in ORDERS:
        raise ValueError(f"need one of the orders {ORDERS}, got {order!r}")
    for part in chain.bands(_band_pixels(by_class, content, original)):
        if order == "logits":
            yield (
                part,
                _summed(by_class, np.stack([probability(chain.rows(plane, part)) for plane in low_res])),
            )
            continue
        source = chain.source_rows(part)
        values = _summed(by_class, steps.probabilities(low_res, source))
        yield part, steps.enlarged(values, source.start, part)


def _by_class(low_res: Floats, weights: Floats) -> Floats:
    if weights.ndim != 2 or len(weights) != len(low_res) or 0 in weights.shape:
        raise ValueError(f"need weights (N, C) of {len(low_res)} masks, got shape {weights.shape}")
    return np.ascontiguousarray(weights.T, np.float32)


def _band_pixels(by_class: Floats, content: tuple[int, int], original: tuple[int, int]) -> int:
    """Of the output, so that neither it nor what it is made of has more than BAND_VALUES values."""
    shrink = max(1.0, content[0] / original[0]) * max(1.0, content[1] / original[1])
    return int(BAND_VALUES / max(by_class.shape) / shrink)


def _summed(by_class: Floats, p: Floats) -> Floats:
    """(C, N) weights and probabilities (N, rows, columns) to (C, rows, columns)."""
    return np.asarray(by_class @ p.reshape(len(p), -1)).reshape(len(by_class), *p.shape[1:])
