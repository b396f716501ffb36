"""mask[n] = bilinear(crop(bilinear(low_res[n], S x S), h' x w'), H x W) > 0     (numpy, the specification)

    low_res  (N, h, w)  float32 logits of N masks
    S                   side of the square the model saw; the picture filled its top-left h' x w' ("content")
    H, W                size of the original picture

Source: PixelLM `postprocess_masks`: `F.interpolate(mode="bilinear", align_corners=False)` twice, in float32,
without antialiasing, then `logits > 0`; score = sum(sigmoid(logits) over the mask) / (pixels of it + 1e-6).

Every float32 rounding is given, so a kernel can agree with this file bit for bit. With fma = one rounding:

    source coordinate   max(fma(n_in / n_out, i + 0.5, -0.5), 0)
    left + right        fma(left, 1 - t, right * t)          along x first, then along y

That is what torch's vectorised CPU code does on a machine with fused multiply-add, and `fmaf` on a GPU.
One mask at a time and in bands of rows: the largest float array is one band, never N full-size logit planes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.upsample_mask.probability import Floats, probability

BAND_PIXELS = 1 << 19  # of output held as float at once: 2 MiB of float32, 4 MiB while a sum is fused


class Taps(NamedTuple):
    """Where the n_out samples of one axis read: `source[low] * (1 - t) + source[high] * t`; each (n_out,)."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    keep: Floats  # 1 - t
    t: Floats


def upsample_mask(
    low_res: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.int32]]:
    """Masks (N, H, W) bool, scores (N,) float32, boxes (N, 4) int32 as x0, y0, x1, y1 with x1, y1 exclusive.

    An empty mask has score 0 and box 0, 0, 0, 0.

    Raises:
        ValueError: `low_res` is not (N, h, w), a size is below 1, or the content is larger than the square.
    """
    check(low_res, square, content, original)
    height, width = original
    masks = np.zeros((len(low_res), height, width), np.bool_)
    scores = np.zeros(len(low_res), np.float32)
    boxes = np.zeros((len(low_res), 4), np.int32)
    to_square = taps(low_res.shape[1], square), taps(low_res.shape[2], square)
    # Taps of the content never read outside it: that is the crop.
    rows, columns = taps(content[0], height), taps(content[1], width)
    band_rows = max(1, BAND_PIXELS // width)
    for index, plane in enumerate(low_res.astype(np.float32, copy=False)):
        logits = mix(mix(plane, to_square[1], axis=1), to_square[0], axis=0)
        total = 0.0
        for top in range(0, height, band_rows):
            part = slice(top, top + band_rows)
            first, last = int(rows.low[part][0]), int(rows.high[part][-1]) + 1
            shifted = Taps(rows.low[part] - first, rows.high[part] - first, rows.keep[part], rows.t[part])
            band = mix(mix(logits[first:last], columns, axis=1), shifted, axis=0)
            positive = np.greater(band, 0, out=masks[index, part])
            total += float(probability(band[positive]).sum(dtype=np.float64))
        scores[index] = total / (int(masks[index].sum()) + 1e-6)
        boxes[index] = box_of(masks[index])
    return masks, scores, boxes


def taps(n_in: int, n_out: int) -> Taps:
    """Half-pixel centres: output i looks at (i + 0.5) * n_in / n_out - 0.5, held inside [0, n_in - 1]."""
    # float64 holds the product of two float32 exactly, so rounding the sum once is a fused multiply-add.
    scale = np.float64(np.float32(n_in) / np.float32(n_out))
    position = (scale * (np.arange(n_out, dtype=np.float64) + 0.5) - 0.5).astype(np.float32)
    np.maximum(position, np.float32(0), out=position)
    low = np.minimum(position.astype(np.intp), n_in - 1)
    t = position - low.astype(np.float32)
    return Taps(low, np.minimum(low + 1, n_in - 1), np.float32(1) - t, t)


def mix(source: Floats, along: Taps, axis: int) -> Floats:
    """fma(source[low], 1 - t, source[high] * t) along `axis` (0 or 1) of a plane; float32 in and out."""
    column = (slice(None), None) if axis == 0 else (None, slice(None))
    far = source.take(along.high, axis) * along.t[column]
    near = source.take(along.low, axis).astype(np.float64)
    near *= along.keep[column]
    near += far
    return near.astype(np.float32)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Smallest x0, y0, x1, y1 (x1, y1 exclusive) around the True pixels of (H, W); zeros if none."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(ys) else (0, 0, 0, 0)


def check(low_res: Floats, square: int, content: tuple[int, int], original: tuple[int, int]) -> None:
    """Raises ValueError as `upsample_mask` does."""
    if low_res.ndim != 3 or 0 in low_res.shape[1:]:
        raise ValueError(f"low_res must be (N, h, w) with h, w >= 1, got shape {low_res.shape}")
    if min(square, *content, *original) < 1 or max(content) > square:
        raise ValueError(
            "need 1 <= content <= square and original >= 1, "
            f"got square {square}, content {content}, original {original}"
        )
