"""How a linear layer multiplies when its weight has fewer bits: standard Q/DQ, as ONNX Runtime and TensorRT fuse it.

int4            x DequantizeLinear(q int4 (K, N), scale (K / block, N); axis 0)         -> MatMulNBits
int8, weights   x DequantizeLinear(q int8 (K, N), scale (N); axis 1)                    -> MatMulNBits
int8, both      DQ(Q(x, s)) DequantizeLinear(q int8 (K, N), scale (N); axis 1)          -> MatMulIntegerToFloat

(K inputs, N outputs; symmetric; scales in fp16, a Cast follows them in graphs with fp32 activations.)
Every product here falls back to `plain_product` for the layers it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pixelrt_export.graph import Graph, Make, Product, plain_product
from pixelrt_export.quantize.blocks import SMALLEST, Blocks

Chosen = Callable[[str], bool]  # name of a linear layer -> whether it is rounded


def int4_product(rounding: Callable[[str, Make], Blocks | None], chosen: Chosen) -> Product:
    """rounding: gives None where no block divides the layer's inputs."""

    def multiply(g: Graph, x: str, name: str, weight: Make) -> str:
        made: list[Blocks | None] = []

        def blocks() -> Blocks | None:
            if not made:
                made.append(rounding(name, weight))
            return made[0]

        known = f"{name}.weight.int4" in g.weights
        if not chosen(name) or not (known or blocks()):
            return plain_product(g, x, name, weight)
        values = g.stored(f"{name}.weight.int4", "int4", lambda: blocks().values)
        scales = g.weight(f"{name}.scale", lambda: blocks().scales)
        block = g.shape(values)[0] // g.shape(f"{name}.scale")[0]
        dense = g.op("DequantizeLinear", values, scales, axis=0, block_size=block)
        return str(g.op("MatMul", x, dense))

    return multiply


def channel_scales(weight: np.ndarray) -> np.ndarray:
    """(N,) of a weight (K, N): its largest value is 127 steps."""
    largest = np.abs(weight.astype(np.float32)).max(0) / 127
    return np.asarray(np.maximum(largest, SMALLEST).astype(np.float16))


def round_channels(weight: np.ndarray) -> np.ndarray:
    """(K, N) int8"""
    scale = channel_scales(weight).astype(np.float32)
    return np.asarray(np.clip(np.rint(weight.astype(np.float32) / scale), -127, 127).astype(np.int8))


def _int8_weight(g: Graph, name: str, weight: Make) -> str:
    values = g.stored(f"{name}.weight.int8", "int8", lambda: round_channels(weight()))
    scales = g.weight(f"{name}.scale", lambda: channel_scales(weight()))
    return str(g.op("DequantizeLinear", values, scales, axis=1))


def int8_weight_product(chosen: Chosen) -> Product:
    def multiply(g: Graph, x: str, name: str, weight: Make) -> str:
        if not chosen(name):
            return plain_product(g, x, name, weight)
        return str(g.op("MatMul", x, _int8_weight(g, name, weight)))

    return multiply


def int8_product(steps: Mapping[str, float], chosen: Chosen) -> Product:
    """steps: linear layer -> what one step of its input is worth, from `ranges`."""

    def multiply(g: Graph, x: str, name: str, weight: Make) -> str:
        if not chosen(name):
            return plain_product(g, x, name, weight)
        step = g.constant(max(float(np.float16(steps[name])), float(SMALLEST)))
        zero = g.zero_int8()
        coarse = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
        return str(g.op("MatMul", coarse, _int8_weight(g, name, weight)))

    return multiply
