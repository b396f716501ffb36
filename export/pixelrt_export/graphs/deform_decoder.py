"""PSALM's pixel decoder: a deformable encoder over three levels and one step up (specification section 8).

Letters: B images, D width, N positions of the three levels (coarse first), n_l = side_l^2 of level l, M heads,
L levels, P points, h = w positions a side of the mask features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from pixelrt_export.graph import Graph
from pixelrt_export.graphs.deform_attn import deform_attn
from pixelrt_export.psalm_config import GROUPS, LEVELS, POINTS, PsalmConfig

Tensor = Callable[[str], np.ndarray]
NORM_EPS = 1e-5


def sine_positions(side: int, width: int) -> np.ndarray:
    """PE[y, x] = (f(y), f(x)), f(i) = sin, cos of 2 pi (i + 1) / (side + 1e-6) / 10000^(4 j / D), interleaved.

    (1, side * side, D), j = 0 .. D/4 - 1.
    """
    place = (np.arange(side) + 1) / (side + 1e-6) * 2 * np.pi
    angle = place[:, None] / 10000 ** (np.arange(width // 4) * 4 / width)
    axis = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(side, width // 2)
    y = np.broadcast_to(axis[:, None], (side, side, width // 2))
    x = np.broadcast_to(axis[None], (side, side, width // 2))
    return np.concatenate([y, x], -1).reshape(1, side * side, width).astype(np.float32)


def level_positions(g: Graph, config: PsalmConfig, level: int) -> str:
    """Sine positions of a level, (1, n_l, D)."""
    side = config.levels[level]
    return g.weight(f"sine_positions.{side}", lambda: sine_positions(side, config.width))


@dataclass(frozen=True)
class DeformDecoder:
    g: Graph
    tensor: Tensor
    config: PsalmConfig

    def __call__(self, stages: list[str]) -> tuple[str, list[str]]:
        """Swin's four stages (B, G * G, C) -> mask features (B, D, h, w), three levels (B, n_l, D)."""
        g, config = self.g, self.config
        with g.scope("pixel_decoder"):
            memory = self._encode(stages[:0:-1])
            ends = np.cumsum([side * side for side in config.levels]).tolist()
            levels = [g.slice(memory, 1, start, end) for start, end in zip([0, *ends], ends, strict=False)]
            with g.scope("fpn"):
                side = config.mask_grid
                fine = g.op("Relu", self._conv_norm(self._square(stages[0], side), "adapter_1", 1))
                coarse = self._square(levels[-1], config.levels[-1])
                scales = g.cast(g.op("Concat", g.constant([1, 1]), g.constant([2, 2]), axis=0), "float32")
                coarse = g.op(
                    "Resize", coarse, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"
                )
                y = g.op("Relu", self._conv_norm(g.op("Add", fine, coarse), "layer_1", 3))
                return self._conv(y, "mask_features", 1), levels

    def _encode(self, maps: list[str]) -> str:
        """The three coarse stages, coarsest first -> (B, N, D) after all layers."""
        g, config = self.g, self.config
        projected, places = [], []
        for level, (x, side) in enumerate(zip(maps, config.levels, strict=True)):
            with g.scope(f"input_proj.{level}"):
                y = self._conv_norm(self._square(x, side), f"input_proj.{level}", 1)
                projected.append(g.transpose(g.reshape(y, [0, 0, -1]), [0, 2, 1]))
                places.append(g.op("Add", level_positions(g, config, level), self._level_row(level)))
        x, positions = g.op("Concat", *projected, axis=1), g.op("Concat", *places, axis=1)
        centres = self._centres()
        for i in range(config.encoder_layers):
            layer = f"transformer.encoder.layers.{i}"
            with g.scope(f"layers.{i}"):
                x = self._norm(
                    g.op("Add", x, self._attention(x, positions, centres, layer)), f"{layer}.norm1"
                )
                hidden = g.op("Relu", self._linear(x, f"{layer}.linear1"))
                x = self._norm(g.op("Add", x, self._linear(hidden, f"{layer}.linear2")), f"{layer}.norm2")
        return x

    def _attention(self, x: str, positions: str, centres: str, layer: str) -> str:
        """Each position looks at P places of every level, around its own centre."""
        g, config = self.g, self.config
        heads, sides = config.heads, config.levels
        # Offsets are in positions of the level they go to: as a part of its side, w and h alike.
        share = np.repeat(1 / np.tile(np.repeat(sides, POINTS), heads), 2).astype(np.float32)
        with g.scope("self_attn"):
            placed = g.op("Add", x, positions)
            value = g.reshape(self._linear(x, f"{layer}.self_attn.value_proj"), [0, 0, heads, -1])
            offsets = self._linear(placed, f"{layer}.self_attn.sampling_offsets", share)
            offsets = g.reshape(offsets, [0, 0, heads, LEVELS, POINTS, 2])
            # In fp32 from here: coordinates of a large map need more than the eleven bits of fp16.
            offsets = offsets if g.activations == "float32" else g.cast(offsets, "float32")
            locations = g.op("Add", offsets, centres)
            weights = self._linear(placed, f"{layer}.self_attn.attention_weights")
            weights = g.softmax(g.reshape(weights, [0, 0, heads, LEVELS * POINTS]))
            weights = g.reshape(weights, [0, 0, heads, LEVELS, POINTS])
            shapes = np.repeat(sides, 2).tolist()
            mixed = g.call(deform_attn(g.opset, LEVELS), value, locations, weights, spatial_shapes=shapes)
            return self._linear(mixed, f"{layer}.self_attn.output_proj")

    def _centres(self) -> str:
        """(x, y) of every position, 0..1 across its own level, float32 (1, N, 1, 1, 1, 2)."""
        g = self.g
        levels = []
        with g.scope("centres"):
            for side in self.config.levels:
                step = g.op("Constant", value_float=1.0 / side)
                along = g.op("Range", g.constant(0), g.constant(side), g.constant(1))
                along = g.op(
                    "Mul", g.op("Add", g.cast(along, "float32"), g.op("Constant", value_float=0.5)), step
                )
                square = g.constant([side, side, 1])
                x, y = (g.op("Expand", g.reshape(along, shape), square) for shape in ([1, -1, 1], [-1, 1, 1]))
                levels.append(g.reshape(g.op("Concat", x, y, axis=2), [1, -1, 1, 1, 1, 2]))
            return str(g.op("Concat", *levels, axis=1))

    def _level_row(self, level: int) -> str:
        key = "pixel_decoder.transformer.level_embed"
        return self.g.weight(
            f"pixel_decoder.level_embed.{level}", lambda: self.tensor(key)[level].reshape(1, 1, -1)
        )

    def _square(self, x: str, side: int) -> str:
        """(B, side^2, C) -> (B, C, side, side)"""
        return self.g.reshape(self.g.transpose(x, [0, 2, 1]), [0, 0, side, side])

    def _linear(self, x: str, leaf: str, factor: np.ndarray | None = None) -> str:
        """A Linear; factor (out,) is folded into its rows."""
        key = f"pixel_decoder.{leaf}"

        def bias() -> np.ndarray:
            rows = self.tensor(f"{key}.bias")
            return rows if factor is None else rows * factor

        def weight() -> np.ndarray:
            rows = self.tensor(f"{key}.weight")
            return rows if factor is None else rows * factor[:, None]

        return self.g.linear(x, key, weight, bias)

    def _norm(self, x: str, leaf: str) -> str:
        key = f"pixel_decoder.{leaf}"
        weight, bias = (lambda: self.tensor(f"{key}.weight")), (lambda: self.tensor(f"{key}.bias"))
        return self.g.layer_norm(x, key, weight, bias, NORM_EPS)

    def _conv(self, x: str, leaf: str, kernel: int) -> str:
        key = f"pixel_decoder.{leaf}"
        weight = self.g.weight(f"{key}.weight", lambda: self.tensor(f"{key}.weight"))
        bias = self.g.weight(f"{key}.bias", lambda: self.tensor(f"{key}.bias"))
        return str(self.g.op("Conv", x, weight, bias, pads=[kernel // 2] * 4))

    def _conv_norm(self, x: str, leaf: str, kernel: int) -> str:
        """GroupNorm(conv(x)), reduced in fp32.

        Spelled as an instance norm over groups: opset 20's GroupNormalization scales groups, not channels.
        """
        g, key = self.g, f"pixel_decoder.{leaf}.1"
        x = self._conv(x, f"{leaf}.0", kernel)
        wide = x if g.activations == "float32" else g.cast(x, "float32")
        ones, zeros = (
            g.op(
                "ConstantOfShape",
                g.constant([GROUPS]),
                value=numpy_helper.from_array(np.full(1, v, np.float32)),
            )
            for v in (1, 0)
        )
        grouped = g.op(
            "InstanceNormalization", g.reshape(wide, [0, GROUPS, -1]), ones, zeros, epsilon=NORM_EPS
        )
        y = g.op("Reshape", grouped, g.op("Shape", x))
        y = y if g.activations == "float32" else g.cast(y, g.activations)
        scale = g.weight(f"{key}.weight", lambda: self.tensor(f"{key}.weight").reshape(-1, 1, 1))
        shift = g.weight(f"{key}.bias", lambda: self.tensor(f"{key}.bias").reshape(-1, 1, 1))
        return str(g.op("Add", g.op("Mul", y, scale), shift))
