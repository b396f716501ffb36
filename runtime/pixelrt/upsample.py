"""Masks are enlarged where their logits lie: on a GPU by its kernels, else in the host library or numpy.

Arguments and results as in `pixelrt_kernels.upsample_mask`; results are always numpy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels import upsample_mask as host
from pixelrt_kernels.upsample_mask import ClassMap, Owners

from pixelrt.engine import Resident, Value

Size = tuple[int, int]
Floats = NDArray[np.float32]
Found = tuple[NDArray[Any], Floats, NDArray[np.int32]]


def upsample_mask(low_res: Value, square: int, content: Size, original: Size) -> Found:
    """Masks (N, H, W) bool, scores, boxes."""
    found: Found = _operators(low_res).upsample_mask(low_res, square, content, original)
    return found


def upsample_bits(low_res: Value, square: int, content: Size, original: Size) -> Found:
    """Masks as bits, scores, boxes."""
    found: Found = _operators(low_res).upsample_bits(low_res, square, content, original)
    return found


def label_map(low_res: Value, scores: Floats, square: int, content: Size, original: Size) -> Owners:
    """Which mask owns each pixel."""
    owners: Owners = _operators(low_res).label_map(low_res, scores, square, content, original)
    return owners


def class_map(low_res: Value, weights: Floats, square: int, content: Size, original: Size) -> ClassMap:
    """Which class has the largest sum at each pixel. No kernel: the host's, everywhere."""
    return host.class_map(np.asarray(low_res), weights, square, content, original)


def _operators(low_res: Value) -> Any:
    return low_res.mask_operators if isinstance(low_res, Resident) else host
