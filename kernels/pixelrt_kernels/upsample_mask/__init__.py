"""Low-resolution mask logits to pixel masks and label maps at the original picture size.

These functions run in the host library where it is built, else in numpy: what they return is the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.library import host_library
from pixelrt_kernels.upsample_mask import classes, host, labels, reference
from pixelrt_kernels.upsample_mask.classes import ClassMap, class_bands
from pixelrt_kernels.upsample_mask.labels import Owners
from pixelrt_kernels.upsample_mask.probability import Floats

__all__ = ["ClassMap", "Owners", "class_bands", "class_map", "label_map", "upsample_bits", "upsample_mask"]


def upsample_mask(
    low_res: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.int32]]:
    """Masks (N, H, W) bool, scores (N,), boxes (N, 4); see reference.py. Scores of the two ways agree within 1e-6."""
    library = host_library()
    if library is None:
        return reference.upsample_mask(low_res, square, content, original)
    return host.upsample_mask(library, low_res, square, content, original)


def upsample_bits(
    low_res: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> tuple[NDArray[np.uint8], Floats, NDArray[np.int32]]:
    """The same with masks as bits (N, H, ceil(W / 8)), as numpy.packbits orders them."""
    library = host_library()
    if library is None:
        masks, scores, boxes = reference.upsample_mask(low_res, square, content, original)
        return np.packbits(masks, axis=2), scores, boxes
    return host.upsample_bits(library, low_res, square, content, original)


def label_map(
    low_res: Floats, scores: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> Owners:
    """Which mask owns each pixel, and areas; see labels.py."""
    library = host_library()
    if library is None:
        return labels.label_map(low_res, scores, square, content, original)
    return host.label_map(library, low_res, scores, square, content, original)


def class_map(
    low_res: Floats, weights: Floats, square: int, content: tuple[int, int], original: tuple[int, int]
) -> ClassMap:
    """Which class has the largest sum at each pixel; see classes.py."""
    library = host_library()
    steps = host.HostSteps(library, low_res.shape[1:], square, content, original) if library else None
    return classes.class_map(low_res, weights, square, content, original, steps)
