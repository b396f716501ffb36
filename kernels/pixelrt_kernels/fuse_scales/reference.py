"""Two steps of PixelLM's mask decoder     (numpy, the specification)

    fuse_scales      out[n, p, c] = (sigmoid(previous[n, p]) + 1) * features[p, c] + dense[c]
    combine_scales   out[n, y, x] = sum over l of weights[l] * bilinear(masks_l[n], h x w)[y, x]

Letters: N targets, P positions of a scale, C channels, l scales from coarse to fine, h x w the finest one's size.
Source: PixelLM, `MaskDecoderMultiScale.predict_masks` (previous: the coarser scale's mask logits) and the sum in
`evaluate`, there with two scales and weights of 1/2. Bilinear: half-pixel centres, as upsample_mask/reference.py.

The picture's features are the same for every target: they are read once, N results are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixelrt_kernels.upsample_mask.probability import Floats, probability
from pixelrt_kernels.upsample_mask.reference import mix, taps


def fuse_scales(previous: Floats, features: Floats, dense: Floats) -> Floats:
    """previous (N, P) logits, features (P, C), dense (C,) -> (N, P, C).

    Everything is computed in float32 and rounded to the type of `features` (float32 or float16) once.
    Raises ValueError: shapes that do not fit.
    """
    check_fuse(previous, features, dense)
    focus = probability(previous) + np.float32(1)
    fused = focus[:, :, None] * features.astype(np.float32) + dense.astype(np.float32)
    return np.asarray(fused.astype(features.dtype))


def combine_scales(masks: Sequence[Floats], weights: Floats) -> Floats:
    """masks: (N, h_l, w_l) of each scale, the finest last, weights (L,) -> (N, h, w) float32.

    Raises ValueError: no scales, or shapes that do not fit.
    """
    check_combine(masks, weights)
    height, width = masks[-1].shape[1:]
    out = np.zeros((len(masks[-1]), height, width), np.float32)
    for weight, scale in zip(weights, masks, strict=True):
        rows, columns = taps(scale.shape[1], height), taps(scale.shape[2], width)
        for n, plane in enumerate(scale.astype(np.float32, copy=False)):
            out[n] += np.float32(weight) * mix(mix(plane, columns, axis=1), rows, axis=0)
    return out


def check_fuse(previous: Floats, features: Floats, dense: Floats) -> None:
    fits = previous.ndim == features.ndim == 2 and previous.shape[1] == features.shape[0]
    if not fits or dense.shape != features.shape[1:]:
        raise ValueError(
            "need previous (N, P), features (P, C) and dense (C,), "
            f"got {previous.shape}, {features.shape} and {dense.shape}"
        )


def check_combine(masks: Sequence[Floats], weights: Floats) -> None:
    shapes = [scale.shape for scale in masks]
    fits = all(len(shape) == 3 and 0 not in shape[1:] and shape[0] == shapes[0][0] for shape in shapes)
    if not shapes or not fits or weights.shape != (len(shapes),):
        raise ValueError(
            f"need masks (N, h, w) of each scale and as many weights, got {shapes} and {weights.shape}"
        )
