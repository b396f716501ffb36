"""PSALM's predictor: mask queries look at the image through their own masks (specification section 8b).

Letters: B prompts on one image, Q queries, K conditions, D width, d head width, n_l positions of level l = i % 3
of layer i, h x w positions of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt_export.graph import Graph
from pixelrt_export.graphs.deform_decoder import NORM_EPS, level_positions
from pixelrt_export.psalm_config import LEVELS, PsalmConfig
from pixelrt_export.psalm_tensors import PROJECTIONS

Tensor = Callable[[str], np.ndarray]
Make = Callable[[], np.ndarray]
CROSS, SELF, FFN = (f"transformer_{kind}_layers" for kind in ("cross_attention", "self_attention", "ffn"))


def conditioned_linear(g: Graph, x: str, name: str, kind: str, weights: Make, biases: Make) -> str:
    """x W[kind] + b[kind] for x (B, R, in), kind (B,): one Linear of a stack for each row of the batch.

    weights (kinds, out, in) and biases (kinds, out) as checkpoints hold them.
    """
    w = g.weight(f"{name}.weight", lambda: weights().transpose(0, 2, 1))
    b = g.weight(f"{name}.bias", lambda: biases()[:, None])
    return str(g.op("Add", g.op("MatMul", x, g.op("Gather", w, kind)), g.op("Gather", b, kind)))


@dataclass(frozen=True)
class Predictor:
    g: Graph
    tensor: Tensor
    config: PsalmConfig

    # ---- what depends on the image alone ----------------------------------------------------------------

    def keys(self, levels: list[str]) -> dict[str, str]:
        """`key.i` (B, heads, d, n_l) and `value.i` (B, heads, n_l, d) of each layer, from levels (B, n_l, D).

        k = (x + level + position) Wk + bk and v = (x + level) Wv + bv; the level's row is folded into the biases.
        """
        g, config = self.g, self.config
        named = {}
        placed = [g.op("Add", x, level_positions(g, config, i)) for i, x in enumerate(levels)]
        for i in range(config.decoder_layers):
            level = i % LEVELS
            with g.scope(f"predictor/layers.{i}"):
                key = g.reshape(self._image_linear(placed[level], i, 1), [0, 0, config.heads, -1])
                named[f"key.{i}"] = g.transpose(key, [0, 2, 3, 1])
                named[f"value.{i}"] = g.split_heads(self._image_linear(levels[level], i, 2), config.heads)
        return named

    def coarse_features(self, mask_features: str) -> list[str]:
        """Mask features (B, D, h, w) at each level's resolution, (B, D, n_l).

        The masks at that resolution are then one product: resizing is linear, so it may come before it. A bilinear
        step down by an even r, half-pixel centres, is the mean of rows and columns r i + r/2 - 1 and r i + r/2.
        """
        g, side = self.g, self.config.mask_grid
        coarse = []
        for level in self.config.levels:
            ratio = side // level
            first = ratio // 2 - 1
            x = mask_features
            if first:
                x = g.slice(g.slice(x, 2, first, side), 3, first, side)
            x = g.op("AveragePool", x, kernel_shape=[2, 2], strides=[ratio, ratio])
            coarse.append(g.reshape(x, [0, 0, -1]))
        return coarse

    # ---- what depends on the prompt ---------------------------------------------------------------------

    def __call__(self, queries: str, keys: dict[str, str], coarse: list[str]) -> str:
        """Queries (B, Q, D) after all layers and the last norm."""
        g, config = self.g, self.config
        places = g.weight("predictor.query_embed", lambda: self.tensor("predictor.query_embed.weight")[None])
        x = queries
        for i in range(config.decoder_layers):
            with g.scope(f"layers.{i}"):
                bias = self._outside(self.mask_vectors(self.norm(x, "decoder_norm")), coarse[i % LEVELS])
                x = self._cross_attention(i, x, places, keys, bias)
                x = self._self_attention(i, x, places)
                layer = f"{FFN}.{i}"
                hidden = g.op("Relu", self._linear(x, f"{layer}.linear1"))
                x = self.norm(g.op("Add", x, self._linear(hidden, f"{layer}.linear2")), f"{layer}.norm")
        return self.norm(x, "decoder_norm")

    def mask_vectors(self, x: str) -> str:
        """(B, Q, D): their products with the mask features are the mask logits."""
        with self.g.scope("mask_embed"):
            for i in range(3):
                x = self._linear(x, f"mask_embed.layers.{i}")
                x = self.g.op("Relu", x) if i < 2 else x
            return x

    def scores(self, x: str, kind: str, conditions: str) -> str:
        """(B, Q, K): products of projected queries and conditions."""
        g = self.g
        for i in range(2):
            weights, biases = (
                lambda leaf=leaf, i=i: np.stack(
                    [self.tensor(f"predictor.{p}.layers.{i}.{leaf}") for p in PROJECTIONS]
                )
                for leaf in ("weight", "bias")
            )
            x = conditioned_linear(g, x, f"predictor.condition_proj.{i}", kind, weights, biases)
            x = g.op("Relu", x) if i < 1 else x
        return str(g.op("MatMul", x, g.transpose(conditions, [0, 2, 1])))

    def _outside(self, vectors: str, features: str) -> str:
        """Bias (B, 1, Q, n_l) that shuts what lies outside a query's own mask; an empty mask shuts nothing."""
        g = self.g
        with g.scope("attention_mask"):
            logits = g.op("MatMul", vectors, features)
            zero = g.constant(0.0)
            inside_any = g.op("GreaterOrEqual", g.op("ReduceMax", logits, g.constant([-1]), keepdims=1), zero)
            shut = g.op("And", g.op("Less", logits, zero), inside_any)
            bias = g.op("Where", shut, g.constant(float(np.finfo(g.activations).min)), zero)
            return str(g.op("Unsqueeze", bias, g.constant([1])))

    def _cross_attention(self, i: int, x: str, places: str, keys: dict[str, str], bias: str) -> str:
        g, layer = self.g, f"{CROSS}.{i}"
        with g.scope("cross"):
            q = g.split_heads(
                self._projection(g.op("Add", x, places), f"{layer}.multihead_attn", 0), self.config.heads
            )
            mixed = g.attend(q, keys[f"key.{i}"], keys[f"value.{i}"], bias)
            x = g.op("Add", x, self._linear(mixed, f"{layer}.multihead_attn.out_proj"))
            return self.norm(x, f"{layer}.norm")

    def _self_attention(self, i: int, x: str, places: str) -> str:
        g, layer = self.g, f"{SELF}.{i}"
        with g.scope("self"):
            placed = g.op("Add", x, places)
            q, k = (self._projection(placed, f"{layer}.self_attn", part) for part in (0, 1))
            mixed = g.attention(q, k, self._projection(x, f"{layer}.self_attn", 2), self.config.heads)
            x = g.op("Add", x, self._linear(mixed, f"{layer}.self_attn.out_proj"))
            return self.norm(x, f"{layer}.norm")

    def _image_linear(self, x: str, i: int, part: int) -> str:
        """Key (1) or value (2) projection of layer i's image side, its level's row folded into the bias."""
        return self._projection(x, f"{CROSS}.{i}.multihead_attn", part, level=i % LEVELS)

    def _projection(self, x: str, leaf: str, part: int, level: int | None = None) -> str:
        """x W^T + b, one block of a fused in_proj [q; k; v]; the query's carries 1/sqrt(d).

        level: x stands for x + that level's row.
        """
        key, width = f"predictor.{leaf}", self.config.width
        factor = np.float32((width // self.config.heads) ** -0.5 if part == 0 else 1)

        def block(kind: str) -> np.ndarray:
            rows = self.tensor(f"{key}.in_proj_{kind}")[part * width : (part + 1) * width]
            return rows.astype(np.float32) * factor

        def bias() -> np.ndarray:
            if level is None:
                return block("bias")
            row = self.tensor("predictor.level_embed.weight")[level].astype(np.float64)
            return (block("bias") + block("weight").astype(np.float64) @ row).astype(np.float32)

        return self.g.linear(x, f"{key}.{'qkv'[part]}_proj", lambda: block("weight"), bias)

    def _linear(self, x: str, leaf: str) -> str:
        key = f"predictor.{leaf}"
        weight, bias = (lambda: self.tensor(f"{key}.weight")), (lambda: self.tensor(f"{key}.bias"))
        return self.g.linear(x, key, weight, bias)

    def norm(self, x: str, leaf: str) -> str:
        key = f"predictor.{leaf}"
        weight, bias = (lambda: self.tensor(f"{key}.weight")), (lambda: self.tensor(f"{key}.bias"))
        return self.g.layer_norm(x, key, weight, bias, NORM_EPS)
