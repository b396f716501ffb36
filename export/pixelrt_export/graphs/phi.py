"""Phi's blocks: attention and MLP side by side behind one LayerNorm, biases everywhere.

Letters: B rows, S new tokens, H width, heads of d. Checkpoints hold q, k and v fused, interleaved by head:
query_key_value (heads * 3 * d, H). They are split here, once, at export.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt_export.graph import Graph
from pixelrt_export.model_config import LanguageConfig

Tensor = Callable[[str], np.ndarray]
Attend = Callable[[int, str, str, str], str]  # layer, q, k, v (B, S, heads * d) -> (B, S, heads * d)


@dataclass(frozen=True)
class Phi:
    g: Graph
    tensor: Tensor
    config: LanguageConfig

    def block(self, i: int, x: str, attend: Attend) -> str:
        """x + attention(norm(x)) + fc2(gelu(fc1(norm(x)))) with one norm for both."""
        g, heads = self.g, self.config.heads
        name, key = f"language.layers.{i}", f"model.layers.{i}"

        def linear(x: str, part: str, leaf: str) -> str:
            full = f"{key}.{part}.{leaf}"
            weight, bias = (lambda: self.tensor(f"{full}.weight")), (lambda: self.tensor(f"{full}.bias"))
            return g.linear(x, f"{name}.{leaf}", weight, bias)

        def projection(x: str, part: int) -> str:
            full = f"{key}.self_attn.query_key_value"
            weight, bias = (
                lambda leaf=leaf: unfused(self.tensor(f"{full}.{leaf}"), heads, part)
                for leaf in ("weight", "bias")
            )
            return g.linear(x, f"{name}.{'qkv'[part]}_proj", weight, bias)

        y = self._norm(x, f"{name}.input_layernorm", f"{key}.input_layernorm")
        mixed = attend(i, *(projection(y, part) for part in range(3)))
        x = g.op("Add", x, linear(mixed, "self_attn", "dense"))
        hidden = g.op("Gelu", linear(y, "mlp", "fc1"), approximate="tanh")
        return str(g.op("Add", x, linear(hidden, "mlp", "fc2")))

    def final_norm(self, x: str) -> str:
        return self._norm(x, "language.norm", "model.final_layernorm")

    def _norm(self, x: str, name: str, key: str) -> str:
        weight, bias = (lambda: self.tensor(f"{key}.weight")), (lambda: self.tensor(f"{key}.bias"))
        return self.g.layer_norm(x, name, weight, bias, self.config.norm_eps)


def unfused(fused: np.ndarray, heads: int, part: int) -> np.ndarray:
    """Rows of q (0), k (1) or v (2) out of (heads, 3, d, ...) flattened to (heads * 3 * d, ...)."""
    rows = fused.reshape(heads, 3, -1, *fused.shape[1:])[:, part]
    return rows.reshape(-1, *fused.shape[1:])
