"""Multi-scale deformable attention's sampling and sum     (numpy, the specification)

    out[b, q, m] = sum over levels l and points p of weights[b, q, m, l, p] * bilinear(value_l[b, :, m], x, y)
    x, y         = locations[b, q, m, l, p] * (w_l, h_l) - 1/2

Letters: B images, N positions of all levels, M heads of width d, L levels, P points, Q queries. Locations are 0..1
across the level's map, pixel centres at (i + 1/2) / size; a corner outside the map counts as zero, also where the
location is not a number. Values are finite. Source: Deformable DETR; PSALM's pixel decoder (`MSDeformAttn`).

Stored values and weights may be float16; coordinates and sums are float32, and the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 or float16


def deform_attn(
    value: Floats,
    shapes: Sequence[tuple[int, int]],
    locations: NDArray[np.float32],
    weights: Floats,
    of: Any = np.float32,
) -> Floats:
    """value (B, N, M, d), shapes: h, w of each level, locations (B, Q, M, L, P, 2) as x, y, weights (B, Q, M, L, P).

    Returns (B, Q, M * d) in the type of `value`, or, with of=np.float64, everything computed and returned in it.
    Raises ValueError: shapes that do not fit.
    """
    check(value, shapes, locations, weights)
    batch, queries, heads, _, points, _ = locations.shape
    width = value.shape[3]
    out = np.zeros((batch, queries, heads, width), of)
    image = np.arange(batch)[:, None, None]
    head = np.arange(heads)[None, None]
    first = 0
    for level, (height, across) in enumerate(shapes):
        maps = value[:, first : first + height * across].astype(of)
        first += height * across
        for point in range(points):
            place = locations[:, :, :, level, point].astype(of)
            x, y = (place[..., axis] * of(size) - of(0.5) for axis, size in enumerate((across, height)))
            left, top = np.floor(x), np.floor(y)
            with np.errstate(invalid="ignore"):  # of a location that is no number: outside, see below
                share_x, share_y = x - left, y - top
            for dy in (0, 1):
                for dx in (0, 1):
                    at_x, at_y = left + of(dx), top + of(dy)
                    inside = (at_x >= 0) & (at_x < across) & (at_y >= 0) & (at_y < height)
                    share = (share_x if dx else of(1) - share_x) * (share_y if dy else of(1) - share_y)
                    share = np.where(inside, share * weights[:, :, :, level, point].astype(of), of(0))
                    row, column = (np.where(inside, at, 0).astype(np.int64) for at in (at_y, at_x))
                    out += share[..., None] * maps[image, row * across + column, head]
    out = out.reshape(batch, queries, heads * width)
    return out if of is np.float64 else np.asarray(out.astype(value.dtype))


def check(
    value: Floats, shapes: Sequence[tuple[int, int]], locations: NDArray[np.float32], weights: Floats
) -> None:
    """Raises ValueError as `deform_attn` does."""
    positions = sum(height * width for height, width in shapes)
    if value.ndim != 4 or value.shape[1] != positions or not len(shapes) or min(map(min, shapes)) < 1:
        raise ValueError(
            f"need value (B, N, M, d) with N = {positions} positions of {shapes}, got {value.shape}"
        )
    wanted = (value.shape[0], value.shape[2], len(shapes))
    fits = locations.ndim == 6 and locations.shape[-1] == 2
    if (
        not fits
        or (locations.shape[0], *locations.shape[2:4]) != wanted
        or weights.shape != locations.shape[:5]
    ):
        raise ValueError(
            f"need locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P) with B, M, L = {wanted}, "
            f"got {locations.shape} and {weights.shape}"
        )


def level_table(shapes: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """(L, 3): height, width and first position of each level, as the kernels read it."""
    areas = np.cumsum([0, *(height * width for height, width in shapes)])
    return np.column_stack([np.array(shapes), areas[:-1]]).astype(np.int32)
