"""fuse_scales and combine_scales in the host library; arguments and results as in reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixelrt_kernels.fuse_scales.reference import check_combine, check_fuse
from pixelrt_kernels.library import HostLibrary
from pixelrt_kernels.upsample_mask.probability import Floats


def fuse_scales(
    library: HostLibrary, previous: Floats, features: Floats, dense: Floats, level: int | None = None
) -> Floats:
    """level: of `library.levels`, the best if None."""
    check_fuse(previous, features, dense)
    stored = np.float16 if features.dtype == np.float16 else np.float32
    out = np.empty((len(previous), *features.shape), stored)
    library.call(
        "fuse_scales",
        np.ascontiguousarray(previous, np.float32),
        np.ascontiguousarray(features, stored),
        np.ascontiguousarray(dense, stored),
        *out.shape,
        int(stored is np.float16),
        library.levels[-1] if level is None else level,
        library.threads,
        out,
    )
    return out


def combine_scales(
    library: HostLibrary, masks: Sequence[Floats], weights: Floats, level: int | None = None
) -> Floats:
    """level: of `library.levels`, the best if None."""
    check_combine(masks, weights)
    out = np.empty(masks[-1].shape, np.float32)
    library.call(
        "combine_scales",
        np.concatenate([scale.astype(np.float32, copy=False).ravel() for scale in masks]),
        np.array([scale.shape[1:] for scale in masks], np.int32),
        np.ascontiguousarray(weights, np.float32),
        len(masks),
        *out.shape,
        library.levels[-1] if level is None else level,
        library.threads,
        out,
    )
    return out
