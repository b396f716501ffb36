"""upsample_mask and label_map in the host library; arguments and results as in reference.py and labels.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.library import HostLibrary
from pixelrt_kernels.upsample_mask.labels import Owners, check_scores
from pixelrt_kernels.upsample_mask.probability import Floats
from pixelrt_kernels.upsample_mask.reference import check

Bytes = NDArray[np.uint8]


def upsample_mask(
    library: HostLibrary,
    low_res: Floats,
    square: int,
    content: tuple[int, int],
    original: tuple[int, int],
    level: int | None = None,
    threads: int | None = None,
    bits: bool = False,
) -> tuple[NDArray[Any], Floats, NDArray[np.int32]]:
    """Masks (N, H, W) bool, scores (N,), boxes (N, 4).

    level: of `library.levels`, the best if None. threads: at most; None for as many as the process may use. bits:
    masks as uint8 (N, H, ceil(W / 8)), as numpy.packbits orders them.
    """
    check(low_res, square, content, original)
    planes = np.ascontiguousarray(low_res, np.float32)
    count, (rows, columns) = len(planes), original
    masks: NDArray[Any] = (
        np.empty((count, rows, -(-columns // 8)), np.uint8)
        if bits
        else np.empty((count, *original), np.bool_)
    )
    scores, boxes = np.zeros(count, np.float32), np.zeros((count, 4), np.int32)
    library.call(
        "upsample_mask",
        planes,
        count,
        _sizes(planes, square, content, original),
        library.levels[-1] if level is None else level,
        threads or library.threads,
        masks if bits else None,
        None if bits else masks,
        scores,
        boxes,
    )
    return masks, scores, boxes


upsample_bits = partial(upsample_mask, bits=True)


def label_map(
    library: HostLibrary,
    low_res: Floats,
    scores: Floats,
    square: int,
    content: tuple[int, int],
    original: tuple[int, int],
    level: int | None = None,
    threads: int | None = None,
) -> Owners:
    check(low_res, square, content, original)
    check_scores(low_res, scores)
    planes = np.ascontiguousarray(low_res, np.float32)
    owner = np.full(original, -1, np.int16)
    won, whole, kept = (np.zeros(len(planes), np.int64) for _ in range(3))
    if len(planes):
        library.call(
            "label_map",
            planes,
            np.ascontiguousarray(scores, np.float32),
            len(planes),
            _sizes(planes, square, content, original),
            library.levels[-1] if level is None else level,
            threads or library.threads,
            owner,
            won,
            whole,
            kept,
        )
    return Owners(owner, won, whole, kept)


@dataclass(frozen=True)
class HostSteps:
    """`Steps` of classes.py. Sizes were checked before."""

    library: HostLibrary
    low: tuple[int, int]  # h, w
    square: int
    content: tuple[int, int]
    original: tuple[int, int]

    def probabilities(self, low_res: Floats, part: slice) -> Floats:
        rows, columns = (self.low[0], self.square), (self.low[1], self.square, self.content[1])
        return resize_rows(self.library, low_res, rows, columns, part, probabilities=True)

    def enlarged(self, values: Floats, first: int, part: slice) -> Floats:
        rows, columns = (
            (self.content[0], self.original[0]),
            (self.content[1], self.original[1], self.original[1]),
        )
        return resize_rows(self.library, values, rows, columns, part, first)


def resize_rows(
    library: HostLibrary,
    planes: Floats,
    rows: tuple[int, int],
    columns: tuple[int, int, int],
    part: slice,
    first: int = 0,
    probabilities: bool = False,
    level: int | None = None,
) -> Floats:
    """Rows `part` of one resize of planes (K, rows, w), which begin with row `first`: (K, rows of part, kept).

    rows: of the whole source and the whole result; columns: the same, and how many of the result are wanted.
    """
    out = np.empty((len(planes), part.stop - part.start, columns[2]), np.float32)
    library.call(
        "resize_rows",
        np.ascontiguousarray(planes, np.float32),
        len(planes),
        np.array([planes.shape[1], first, *rows, part.start, part.stop, *columns], np.int32),
        int(probabilities),
        library.levels[-1] if level is None else level,
        library.threads,
        out,
    )
    return out


def _sizes(
    planes: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> NDArray[np.int32]:
    """What `chain_of` in host.cpp reads."""
    return np.array([*planes.shape[1:], square, *content, *original], np.int32)
