"""NF4 as bitsandbytes has it: what PixelLM's users get with `--load_in_4bit`.

    W[n, k] = CODE[q[n, k]] * absmax[(n K + k) // 64]

N outputs, K inputs, blocks of 64 along the flattened weight, two codes a byte, the first in the high half; absmax is
itself rounded to 8 bits (double quantisation) and stored as what comes out of that. bitsandbytes does the rounding.
Source of CODE: QLoRA, arXiv 2305.14314, appendix E. ONNX Runtime multiplies in its own operator MatMulBnb4; TensorRT
has none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pixelrt.errors import MissingExtra

from pixelrt_export.graph import Graph, Make, Product, plain_product

BLOCK = 64
CODE = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
NF4 = 1  # MatMulBnb4's quant_type


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight (N, K) -> codes uint8 (N K / 2), absmax float32 (N K / 64)."""
    try:
        from bitsandbytes import functional
    except ModuleNotFoundError as error:
        raise MissingExtra("bitsandbytes", "nf4") from error
    import torch

    packed, state = functional.quantize_4bit(
        torch.from_numpy(np.array(weight, np.float32)),
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
    )
    absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return packed.numpy().reshape(-1), absmax.float().numpy().reshape(-1)


def dequantise(packed: np.ndarray, absmax: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The weight (N, K) that is meant, float32."""
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    blocks = np.arange(codes.size) // BLOCK
    return np.asarray(CODE[codes] * absmax[blocks]).reshape(shape)


def nf4_product(chosen: Callable[[str], bool]) -> Product:
    """x W by MatMulBnb4, W (K, N) as every product gets it."""
    shapes: dict[str, tuple[int, int]] = {}  # of the layers met so far: (K, N)

    def multiply(g: Graph, x: str, name: str, weight: Make) -> str:
        if not chosen(name):
            return plain_product(g, x, name, weight)
        made: list[tuple[np.ndarray, np.ndarray]] = []

        def both() -> tuple[np.ndarray, np.ndarray]:
            if not made:
                made.append(quantise(weight().T))
            return made[0]

        if name not in shapes:
            rows, columns = weight().shape
            shapes[name] = rows, columns
        codes = g.stored(f"{name}.weight.nf4", "uint8", lambda: both()[0])
        absmax = g.stored(f"{name}.absmax", "float32", lambda: both()[1])
        if g.activations != "float32":
            absmax = g.cast(absmax, g.activations)
        inputs, outputs = shapes[name]
        sizes = {"K": inputs, "N": outputs, "block_size": BLOCK, "quant_type": NF4}
        return str(g.op("MatMulBnb4", x, codes, absmax, domain="com.microsoft", **sizes))

    return multiply
