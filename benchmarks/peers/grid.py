"""Random weights that int4 does not change: `scale * q` in blocks along a row, q in -8..7.

So two exporters that round by rules of their own write the same weights, and what they differ in is their graphs
alone.
"""

from __future__ import annotations

import numpy as np
from pixelrt_export.quantize.blocks import Blocks

BLOCK = 32
# Of each block's largest weight. ONNX Runtime's rounding makes it -8 steps, ours 7 (one side has to go without).
ORT_PEAK, OUR_PEAK = -8, 7
BITS = 7  # of a scale, so that scale * q has no more than the 11 of float16


def on_grid(weight: np.ndarray, peak: int, block: int = BLOCK) -> np.ndarray:
    """(N, K) -> float16 (N, K) close to it; K is a multiple of the block.

    The largest weight of a block becomes `peak` steps: -8 whatever its sign, 7 to its own side. (Where all went to one
    side, a row of a wide matrix would have a mean that outgrows everything random in it.)
    """
    blocks = weight.astype(np.float32).reshape(len(weight), -1, block)
    mantissa, exponent = np.frexp(np.abs(blocks).max(-1, keepdims=True) / abs(peak))
    scale = np.ldexp(np.ceil(mantissa * 2**BITS) / 2**BITS, exponent)
    steps = np.clip(np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)), -7, 7)
    at = np.abs(blocks).argmax(-1)[..., None]
    largest = np.copysign(peak, np.take_along_axis(blocks, at, -1)) if peak == OUR_PEAK else peak
    np.put_along_axis(steps, at, largest, -1)
    return np.asarray(steps * scale, np.float16).reshape(weight.shape)


def blocks_of(weight: np.ndarray, peak: int = ORT_PEAK, block: int = BLOCK) -> Blocks:
    """The blocks that such a weight, transposed to (K, N), was made of."""
    blocks = weight.astype(np.float32).reshape(-1, block, weight.shape[1])
    scales = np.abs(blocks).max(1) / abs(peak)
    steps = np.divide(blocks, scales[:, None], out=np.zeros_like(blocks), where=scales[:, None] > 0)
    return Blocks(np.rint(steps).astype(np.int8).reshape(weight.shape), scales.astype(np.float16))
