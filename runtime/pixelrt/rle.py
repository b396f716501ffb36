"""COCO run-length encoding, equal to pycocotools byte for byte.

counts = lengths of runs of 0, 1, 0, ... down the columns, starting with 0s (perhaps none).
From the fourth on, the difference to the count two before is written. Each number, signed, is cut into groups
of 5 bits, lowest first; bit 5 says that more follow; 48 is added to make ASCII.

Source: the COCO API, `maskApi.c` (`rleToString`, `rleFrString`).
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError


class Rle(TypedDict):
    """`size` is [H, W]; `counts` the compressed string."""

    size: list[int]
    counts: str


def encode(mask: NDArray[Any]) -> Rle:
    """(H, W) bool (or 0 / 1) to RLE."""
    if mask.ndim != 2:
        raise InputError(f"a mask must be (H, W), got shape {mask.shape}.")
    pixels = mask.T.astype(bool).ravel()  # column after column
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    start = [0, 0] if pixels.size and pixels[0] else [0]
    runs = np.diff(np.concatenate([start, changes, [pixels.size]]))
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": _to_ascii(numbers)}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask (H, W) bool. Raises InputError for a string that is no RLE of that size."""
    height, width = rle["size"]
    runs = _runs(rle)
    values = np.zeros(len(runs), np.bool_)
    values[1::2] = True
    return np.asarray(np.repeat(values, runs).reshape(width, height).T)


def area(rle: Rle) -> int:
    """Number of pixels of the mask, without decoding it."""
    return int(_runs(rle)[1::2].sum())


def _runs(rle: Rle) -> NDArray[np.int64]:
    runs = _from_ascii(rle["counts"])
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    height, width = rle["size"]
    # Each run by itself too: 60-bit runs can overflow to the right sum.
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise InputError(f"the RLE counts cover {runs.sum()} pixels, not the {height} x {width} of its size.")
    return runs


def _to_ascii(numbers: NDArray[np.int64]) -> str:
    # n groups hold -(2 ** (5n - 1)) <= x < 2 ** (5n - 1); x ^ (x >> 63) folds the negative half over.
    magnitude = numbers ^ (numbers >> 63)
    bounds = np.int64(1) << np.arange(4, 63, 5)
    groups = np.searchsorted(bounds, magnitude, side="right") + 1  # (R,)
    place = np.arange(groups.max(initial=1))
    more = place < groups[:, None] - 1
    codes = ((numbers[:, None] >> (5 * place)) & 31) | (more << 5)
    text: bytes = (codes + 48)[place < groups[:, None]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def _from_ascii(counts: str) -> NDArray[np.int64]:
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise InputError("the RLE counts are not a compressed COCO string.")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 11:
        raise InputError("the RLE counts hold a number of more than 60 bits.")
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[ends] & 16) != 0
    return np.asarray(numbers - (negative.astype(np.int64) << (5 * (ends - starts + 1))), np.int64)
