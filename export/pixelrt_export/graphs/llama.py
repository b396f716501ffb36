"""LLaMA's blocks: attention, then a gated MLP, each behind its own RMSNorm.

Letters: B rows, S new tokens, H width.
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
class Llama:
    g: Graph
    tensor: Tensor
    config: LanguageConfig

    def block(self, i: int, x: str, attend: Attend) -> str:
        """h = x + attention(norm(x)); h + down(silu(gate(norm(h))) * up(norm(h)))."""
        g, name, key = self.g, f"language.layers.{i}", f"model.layers.{i}"

        def linear(x: str, part: str, leaf: str) -> str:
            return g.linear(x, f"{name}.{leaf}", lambda: self.tensor(f"{key}.{part}.{leaf}.weight"))

        y = self._rms_norm(x, f"{name}.input_layernorm", f"{key}.input_layernorm")
        q, k, v = (linear(y, "self_attn", leaf) for leaf in ("q_proj", "k_proj", "v_proj"))
        x = g.op("Add", x, linear(attend(i, q, k, v), "self_attn", "o_proj"))

        post = "post_attention_layernorm"
        y = self._rms_norm(x, f"{name}.{post}", f"{key}.{post}")
        gate = linear(y, "mlp", "gate_proj")
        gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), linear(y, "mlp", "up_proj"))
        return str(g.op("Add", x, linear(gated, "mlp", "down_proj")))

    def final_norm(self, x: str) -> str:
        return self._rms_norm(x, "language.norm", "model.norm")

    def _rms_norm(self, x: str, name: str, key: str) -> str:
        """x / sqrt(mean(x^2) + eps) * w, reduced in fp32."""
        g, epsilon = self.g, self.config.norm_eps
        weight = g.weight(f"{name}.weight", lambda: self.tensor(f"{key}.weight"))
        if g.opset >= 23:
            return str(g.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1))
        with g.scope(name.rsplit(".", 1)[-1]):
            wide = x if g.activations == "float32" else g.cast(x, "float32")
            mean = g.op("ReduceMean", g.op("Mul", wide, wide), g.constant([-1]), keepdims=1)
            root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_float=float(epsilon))))
            scaled = g.op("Div", wide, root)
            narrow = scaled if g.activations == "float32" else g.cast(scaled, g.activations)
            return str(g.op("Mul", narrow, weight))
