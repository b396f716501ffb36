"""Swin's vision tower as a graph, every window constant folded (specification section 2).

Letters: B images, per stage: G positions a side, C channels, w window side, k windows a side, so that w k >= G.
Feature maps are kept channels-last, (B, G * G, C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt_export.graph import Graph
from pixelrt_export.psalm_config import PsalmConfig, SwinStage

Tensor = Callable[[str], np.ndarray]
PREFIX = "model.vision_tower"
NORM_EPS = 1e-5
APART = -100.0  # added to scores between positions that the shift brought together


def relative_index(window: int) -> np.ndarray:
    """Row of the bias table for each pair of positions of a window, (w * w, w * w).

    (dy + w - 1) * (2 w - 1) + (dx + w - 1) for the offset (dy, dx) from key to query.
    """
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = (axis[:, None] - axis[None] + window - 1 for axis in (y, x))
    return dy * (2 * window - 1) + dx


def shift_mask(window: int, windows: int, shift: int) -> np.ndarray:
    """What is added to the scores of each window of the shifted map, (k * k, 1, w * w, w * w): 0 or APART.

    After the roll the last window of an axis holds the map's end and its beginning, which must not mix. Padding
    counts as map: positions that were padded are looked at like any other.
    """
    side = window * windows
    position = np.arange(side)
    region = (position >= side - window).astype(int) + (position >= side - shift)
    regions = region[:, None] * 3 + region[None]
    regions = regions.reshape(windows, window, windows, window).transpose(0, 2, 1, 3)
    regions = regions.reshape(windows * windows, 1, window * window)
    apart = regions[..., :, None] != regions[..., None, :]
    return np.where(apart, APART, 0).astype(np.float32)


def swin_tower(g: Graph, tensor: Tensor, config: PsalmConfig, pixels: str) -> list[str]:
    """pixels (B, 3, S, S) -> the four stages, (B, G * G, C) each, after their norms."""
    with g.scope("swin"):
        embed = f"{PREFIX}.patch_embed"
        x = g.op(
            "Conv",
            pixels,
            g.weight("swin.patch_embed.weight", lambda: tensor(f"{embed}.proj.weight")),
            g.weight("swin.patch_embed.bias", lambda: tensor(f"{embed}.proj.bias")),
            strides=[config.patch, config.patch],
        )
        x = g.transpose(g.reshape(x, [0, 0, -1]), [0, 2, 1])
        x = g.tap("swin.embeddings", _norm(g, tensor, x, "patch_embed.norm"))
        stages = []
        for i, stage in enumerate(config.swin):
            with g.scope(f"layers.{i}"):
                if i:
                    x = _merge(g, tensor, x, f"layers.{i - 1}.downsample", stage)
                for j in range(stage.depth):
                    with g.scope(f"blocks.{j}"):
                        x = _Block(g, tensor, stage, f"layers.{i}.blocks.{j}", bool(j % 2))(x)
                        g.tap(f"swin.layers.{i}.blocks.{j}", x)
                stages.append(_norm(g, tensor, x, f"norm{i}"))
    return stages


def _norm(g: Graph, tensor: Tensor, x: str, leaf: str) -> str:
    key = f"{PREFIX}.{leaf}"
    return g.layer_norm(
        x, f"swin.{leaf}", lambda: tensor(f"{key}.weight"), lambda: tensor(f"{key}.bias"), NORM_EPS
    )


def _merge(g: Graph, tensor: Tensor, x: str, leaf: str, stage: SwinStage) -> str:
    """Four neighbours become one position: (B, (2 G)^2, C) -> (B, G^2, 2 C).

    They are joined (y, x) = (0, 0), (1, 0), (0, 1), (1, 1): down first, then right.
    """
    grid = stage.grid
    x = g.transpose(
        g.reshape(g.reshape(x, [0, 2 * grid, 2 * grid, -1]), [0, grid, 2, grid, 2, -1]), [0, 1, 3, 4, 2, 5]
    )
    x = _norm(g, tensor, g.reshape(x, [0, grid * grid, -1]), f"{leaf}.norm")
    return g.linear(x, f"swin.{leaf}.reduction", lambda: tensor(f"{PREFIX}.{leaf}.reduction.weight"))


@dataclass(frozen=True)
class _Block:
    """x + attention(norm1(x)) within windows, then x + mlp(norm2(x)); every other block shifts its windows."""

    g: Graph
    tensor: Tensor
    stage: SwinStage
    name: str
    shifted: bool

    @property
    def windows(self) -> int:
        return -(-self.stage.grid // self.stage.window)

    @property
    def shift(self) -> int:
        return self.stage.window // 2 if self.shifted else 0

    def __call__(self, x: str) -> str:
        g = self.g
        y = _norm(g, self.tensor, x, f"{self.name}.norm1")
        mixed = self._from_windows(self._attention(self._to_windows(y)))
        x = g.op("Add", x, self._linear(mixed, "attn.proj"))
        y = _norm(g, self.tensor, x, f"{self.name}.norm2")
        return str(g.op("Add", x, self._linear(g.op("Gelu", self._linear(y, "mlp.fc1")), "mlp.fc2")))

    def _linear(self, x: str, leaf: str) -> str:
        key = f"{PREFIX}.{self.name}.{leaf}"
        weight, bias = (lambda: self.tensor(f"{key}.weight")), (lambda: self.tensor(f"{key}.bias"))
        return self.g.linear(x, f"swin.{self.name}.{leaf}", weight, bias)

    def _attention(self, x: str) -> str:
        """(B k k, w w, C) -> the same, before the output projection."""
        g, stage, area = self.g, self.stage, self.stage.window**2
        with g.scope("attn"):
            q, k, v = (
                g.split_heads(part, stage.heads)
                for part in g.op("Split", self._qkv(x), axis=-1, num_outputs=3, outputs=3)
            )
            scores = g.op("Add", g.op("MatMul", q, g.transpose(k, [0, 1, 3, 2])), self._relative_bias())
            if self.shifted:
                scores = g.reshape(scores, [-1, self.windows**2, stage.heads, area, area])
                scores = g.op("Add", scores, self._shift_mask())
                scores = g.reshape(scores, [-1, stage.heads, area, area])
            mixed = g.op("MatMul", g.softmax(scores), v)
            return g.reshape(g.transpose(mixed, [0, 2, 1, 3]), [0, 0, -1])

    def _qkv(self, x: str) -> str:
        """All three projections; 1/sqrt(d) is folded into the query's rows."""
        key, width = f"{PREFIX}.{self.name}.attn.qkv", self.stage.width

        def scaled(leaf: str) -> np.ndarray:
            rows = self.tensor(f"{key}.{leaf}").astype(np.float32)
            rows[:width] *= np.float32((width // self.stage.heads) ** -0.5)
            return rows

        name = f"swin.{self.name}.attn.qkv"
        return self.g.linear(x, name, lambda: scaled("weight"), lambda: scaled("bias"))

    def _relative_bias(self) -> str:
        """(heads, w w, w w)"""
        leaf = f"{self.name}.attn.relative_position_bias"

        def gathered() -> np.ndarray:
            table = self.tensor(f"{PREFIX}.{leaf}_table")
            return table[relative_index(self.stage.window)].transpose(2, 0, 1)

        return self.g.weight(f"swin.{leaf}", gathered)

    def _shift_mask(self) -> str:
        """One a geometry: all shifted blocks of a stage share it."""
        window, windows = self.stage.window, self.windows
        return self.g.weight(
            f"swin.shift_mask.{windows}x{window}", lambda: shift_mask(window, windows, self.shift)
        )

    def _to_windows(self, x: str) -> str:
        """(B, G G, C) -> (B k k, w w, C): padded with zeros below and at the right, rolled, cut."""
        g, window, windows, grid = self.g, self.stage.window, self.windows, self.stage.grid
        side = window * windows
        with g.scope("to_windows"):
            x = g.reshape(x, [0, grid, grid, -1])
            if side > grid:
                x = g.op("Pad", x, g.constant([0, 0, side - grid, side - grid]), "", g.constant([1, 2]))
            x = self._roll(x, self.shift)
            x = g.transpose(
                g.reshape(x, [0, windows, window, windows, window, self.stage.width]), [0, 1, 3, 2, 4, 5]
            )
            return g.reshape(x, [-1, window * window, self.stage.width])

    def _from_windows(self, x: str) -> str:
        """The way back; padding is cut off."""
        g, window, windows, grid = self.g, self.stage.window, self.windows, self.stage.grid
        side = window * windows
        with g.scope("from_windows"):
            x = g.reshape(x, [-1, windows, windows, window, window, self.stage.width])
            x = g.reshape(g.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, side, side, self.stage.width])
            x = self._roll(x, side - self.shift)
            if side > grid:
                x = g.slice(g.slice(x, 1, 0, grid), 2, 0, grid)
            return g.reshape(x, [0, grid * grid, self.stage.width])

    def _roll(self, x: str, start: int) -> str:
        """Both axes begin at `start`; what was before it comes last."""
        side = self.stage.window * self.windows
        for axis in (1, 2) if 0 < start < side else ():
            x = self.g.op(
                "Concat", self.g.slice(x, axis, start, side), self.g.slice(x, axis, 0, start), axis=axis
            )
        return x
