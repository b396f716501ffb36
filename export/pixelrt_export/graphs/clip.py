"""CLIP vision tower as a graph, masked as PixelLM masks it (specification sections 2.3, 2.4, 4.1).

Letters: B images, G patches a side, P = G * G, C tower width, T = 1 + P tokens (class token first).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pixelrt_export.config import VisionConfig
from pixelrt_export.graph import Graph

Tensor = Callable[[str], np.ndarray]


def resized_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Position table (1 + p * p, C) for a grid x grid image, (1 + grid * grid, C).

    The LAST row is kept as the class row and the rest is taken as the p x p grid, though CLIP itself puts the
    class row first: PixelLM was trained with that, so the shift by one is part of the model. Resize: bilinear,
    half-pixel centres, no antialiasing. An unchanged size changes nothing.
    """
    table = table.astype(np.float32)
    native = round((len(table) - 1) ** 0.5)
    square = table[:-1].reshape(native, native, -1)
    rows = _lerp(native, grid)
    resized = np.einsum("yi,xj,ijc->yxc", rows, rows, square, optimize=True)
    return np.concatenate([resized.reshape(grid * grid, -1), table[-1:]]).astype(np.float32)


def _lerp(source: int, target: int) -> np.ndarray:
    """Matrix (target, source) of one-dimensional bilinear interpolation with half-pixel centres."""
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(np.floor(position).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weight = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - weight)
    np.add.at(matrix, (np.arange(target), high), weight)
    return matrix


def clip_tower(
    g: Graph,
    tensor: Tensor,
    vision: VisionConfig,
    grid: int,
    layers: tuple[int, ...],
    pixels: str,
    patch_valid: str,
) -> list[str]:
    """Patch features (B, P, C) after each layer count in `layers`; nothing beyond the deepest is built.

    pixels (B, 3, S, S); patch_valid bool (B, T), False where a patch lies in the padding: such patches are
    never attended to, as keys, by anyone.
    """
    width, prefix = vision.hidden, "vision_model."

    def positions() -> np.ndarray:
        return resized_positions(tensor(prefix + "embeddings.position_embedding.weight"), grid)

    def class_row() -> np.ndarray:
        return (tensor(prefix + "embeddings.class_embedding").astype(np.float32) + positions()[0])[None, None]

    with g.scope("clip"):
        patches = g.op(
            "Conv",
            pixels,
            g.weight("clip.patch_embedding", lambda: tensor(prefix + "embeddings.patch_embedding.weight")),
            strides=[vision.patch, vision.patch],
        )
        patches = g.transpose(g.reshape(patches, [0, 0, -1]), [0, 2, 1])
        patches = g.op("Add", patches, g.weight("clip.patch_positions", lambda: positions()[None, 1:]))
        batch = g.op("Concat", g.op("Shape", pixels, start=0, end=1), g.constant([1, width]), axis=0)
        x = g.op("Concat", g.op("Expand", g.weight("clip.class_row", class_row), batch), patches, axis=1)
        x = _norm(g, tensor, "clip.pre_layrnorm", prefix + "pre_layrnorm", x, vision)  # (sic, CLIP's own key)
        g.tap("clip.embeddings", x)

        open_, shut = g.constant(0.0), g.constant(float(np.finfo(g.activations).min))
        bias = g.op("Where", g.op("Unsqueeze", patch_valid, g.constant([1, 2])), open_, shut)  # (B, 1, 1, T)

        features = {}
        for i in range(max(layers)):
            with g.scope(f"layers.{i}"):
                x = _layer(g, tensor, vision, f"clip.layers.{i}", f"{prefix}encoder.layers.{i}", x, bias)
                g.tap(f"clip.layers.{i}", x)
            if i + 1 in layers:
                features[i + 1] = g.slice(x, 1, 1, np.iinfo(np.int64).max)
    return [features[i] for i in layers]


def _norm(g: Graph, tensor: Tensor, name: str, key: str, x: str, vision: VisionConfig) -> str:
    return g.layer_norm(
        x, name, lambda: tensor(f"{key}.weight"), lambda: tensor(f"{key}.bias"), vision.norm_eps
    )


def _layer(g: Graph, tensor: Tensor, vision: VisionConfig, name: str, key: str, x: str, bias: str) -> str:
    scale = (vision.hidden // vision.heads) ** -0.5

    def linear(x: str, leaf: str, factor: float = 1.0) -> str:
        part = "self_attn" if leaf.endswith("proj") else "mlp"
        return g.linear(
            x,
            f"{name}.{leaf}",
            lambda: tensor(f"{key}.{part}.{leaf}.weight").astype(np.float32) * np.float32(factor),
            lambda: tensor(f"{key}.{part}.{leaf}.bias").astype(np.float32) * np.float32(factor),
        )

    y = _norm(g, tensor, f"{name}.layer_norm1", f"{key}.layer_norm1", x, vision)
    # 1/sqrt(d) is folded into the query projection: one multiplication less, and fp16 scores stay small.
    q, k, v = linear(y, "q_proj", scale), linear(y, "k_proj"), linear(y, "v_proj")
    x = g.op("Add", x, linear(g.attention(q, k, v, vision.heads, bias), "out_proj"))
    y = linear(_norm(g, tensor, f"{name}.layer_norm2", f"{key}.layer_norm2", x, vision), "fc1")
    if vision.activation == "quick_gelu":
        y = g.op("Mul", y, g.op("Sigmoid", g.op("Mul", y, g.constant(1.702))))
    else:
        y = g.op("Gelu", y)
    return str(g.op("Add", x, linear(y, "fc2")))
