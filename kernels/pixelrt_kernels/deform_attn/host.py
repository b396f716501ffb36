"""deform_attn in the host library; arguments and results as in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.deform_attn.reference import Floats, check, level_table
from pixelrt_kernels.library import HostLibrary


def deform_attn(
    library: HostLibrary,
    value: Floats,
    shapes: Sequence[tuple[int, int]],
    locations: NDArray[np.float32],
    weights: Floats,
    level: int | None = None,
) -> Floats:
    """level: of `library.levels`, the best if None."""
    check(value, shapes, locations, weights)
    stored = np.float16 if value.dtype == np.float16 else np.float32
    batch, queries, heads, levels, points, _ = locations.shape
    out = np.empty((batch, queries, heads * value.shape[3]), stored)
    library.call(
        "deform_attn",
        np.ascontiguousarray(value, stored),
        level_table(shapes),
        np.ascontiguousarray(locations, np.float32),
        np.ascontiguousarray(weights, stored),
        batch,
        value.shape[1],
        queries,
        heads,
        value.shape[3],
        levels,
        points,
        int(stored is np.float16),
        library.levels[-1] if level is None else level,
        library.threads,
        out,
    )
    return out
