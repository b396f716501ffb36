"""A decoder-only language model over embeddings, with a cache, as one ONNX graph in two spellings.

`in_place` (opset 24): the cache is a buffer of fixed length, bound to input and output at once; TensorScatter
writes the new rows and Attention reads the first T of them. ONNX Runtime and TensorRT >= 10.15.
`concat` (opset 21): past in, past + new out, attention and rotary embedding spelled out. TensorRT before 10.15
and ONNX Runtime 1.23, the newest for Python 3.10.

Letters: B rows, S new tokens, M cache length, P past tokens, T = tokens attended to, R rows asked for,
H width, V vocabulary, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt_export.config import LanguageConfig
from pixelrt_export.graph import Graph

Tensor = Callable[[str], np.ndarray]
OPSETS = {"in_place": 24, "concat": 21}


def build_language(g: Graph, tensor: Tensor, config: LanguageConfig, cache: str) -> None:
    """inputs_embeds, position_ids, attn_mask, logit_rows (+ write_indices) and cache -> logits, hidden, cache.

    attn_mask bool (B, 1, S, T), True where a new token may look. logit_rows (R,): which of the S rows get
    logits (B, R, V) and post-norm hidden states (B, R, H).
    """
    x = g.input("inputs_embeds", "activations", ["B", "S", config.hidden])
    g.input("position_ids", "int64", ["B", "S"])
    g.input("attn_mask", "bool", ["B", 1, "S", "T"])
    rows = g.input("logit_rows", "int64", ["R"])
    attend = _InPlace(g, tensor, config) if cache == "in_place" else _Concat(g, tensor, config)
    for i in range(config.layers):
        with g.scope(f"layers.{i}"):
            x = _llama_block(g, tensor, config, attend, i, x)
    with g.scope("head"):
        hidden = _rms_norm(g, tensor, config, "language.norm", "model.norm", g.op("Gather", x, rows, axis=1))
        logits = g.linear(hidden, "language.lm_head", lambda: tensor("lm_head.weight"))
    g.output(logits, "logits", "float32", ["B", "R", config.vocab])
    g.output(hidden, "hidden", "activations", ["B", "R", config.hidden])


def _llama_block(
    g: Graph, tensor: Tensor, config: LanguageConfig, attend: _InPlace | _Concat, i: int, x: str
) -> str:
    name, key = f"language.layers.{i}", f"model.layers.{i}"

    def linear(x: str, part: str, leaf: str) -> str:
        return g.linear(x, f"{name}.{leaf}", lambda: tensor(f"{key}.{part}.{leaf}.weight"))

    y = _rms_norm(g, tensor, config, f"{name}.input_layernorm", f"{key}.input_layernorm", x)
    q, k, v = (linear(y, "self_attn", leaf) for leaf in ("q_proj", "k_proj", "v_proj"))
    q, k, v = (
        g.split_heads(q, config.heads),
        g.split_heads(k, config.kv_heads),
        g.split_heads(v, config.kv_heads),
    )
    mixed = g.reshape(g.transpose(attend(i, q, k, v), [0, 2, 1, 3]), [0, 0, -1])
    x = g.op("Add", x, linear(mixed, "self_attn", "o_proj"))

    post = "post_attention_layernorm"
    y = _rms_norm(g, tensor, config, f"{name}.{post}", f"{key}.{post}", x)
    gate = linear(y, "mlp", "gate_proj")
    gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), linear(y, "mlp", "up_proj"))
    return str(g.op("Add", x, linear(gated, "mlp", "down_proj")))


def _rms_norm(g: Graph, tensor: Tensor, config: LanguageConfig, name: str, key: str, x: str) -> str:
    """x / sqrt(mean(x^2) + eps) * w, reduced in fp32."""
    weight = g.weight(f"{name}.weight", lambda: tensor(f"{key}.weight"))
    if g.opset >= 23:
        return str(g.op("RMSNormalization", x, weight, axis=-1, epsilon=config.norm_eps, stash_type=1))
    with g.scope(name.rsplit(".", 1)[-1]):
        wide = x if g.activations == "float32" else g.cast(x, "float32")
        mean = g.op("ReduceMean", g.op("Mul", wide, wide), g.constant([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, _float32(g, config.norm_eps)))
        scaled = g.op("Div", wide, root)
        narrow = scaled if g.activations == "float32" else g.cast(scaled, g.activations)
        return str(g.op("Mul", narrow, weight))


def _float32(g: Graph, value: float) -> str:
    return str(g.op("Constant", value_float=float(value)))


def _rotary_table(g: Graph, config: LanguageConfig, function: Callable[[np.ndarray], np.ndarray]) -> str:
    """cos or sin of position * theta^(-2j / d), (max_positions, d / 2); angles in float64."""

    def make() -> np.ndarray:
        d = config.head_dim
        frequency = config.rope_theta ** -(np.arange(0, d, 2, dtype=np.float64) / d)
        return function(np.outer(np.arange(config.max_positions), frequency)).astype(np.float32)

    return g.weight(f"language.rotary_{function.__name__}", make)


@dataclass
class _InPlace:
    """Attention over a cache that is written where it lies."""

    g: Graph
    tensor: Tensor
    config: LanguageConfig

    def __post_init__(self) -> None:
        g = self.g
        g.input("write_indices", "int64", ["B"])
        self.seen = g.op("Shape", "attn_mask", start=3, end=4)
        self.cos, self.sin = _rotary_table(g, self.config, np.cos), _rotary_table(g, self.config, np.sin)

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        g, shape = self.g, ["B", self.config.kv_heads, "M", self.config.head_dim]
        q, k = (g.op("RotaryEmbedding", x, self.cos, self.sin, "position_ids") for x in (q, k))
        read = []
        for part, new in (("key", k), ("value", v)):
            past = g.input(f"past.{i}.{part}", "activations", shape)
            present = f"present.{i}.{part}"
            g.op("TensorScatter", past, new, "write_indices", outputs=[present], axis=-2)
            g.output(present, present, "activations", shape)
            # Only what is filled: without the Slice the whole buffer is multiplied every step.
            read.append(g.op("Slice", present, g.constant([0]), self.seen, g.constant([2])))
        precision = {} if g.activations == "float32" else {"softmax_precision": 1}
        return str(
            g.op(
                "Attention", q, *read, "attn_mask", is_causal=0, scale=self.config.head_dim**-0.5, **precision
            )
        )


@dataclass
class _Concat:
    """Attention over past and new keys joined, in operators every runtime has."""

    g: Graph
    tensor: Tensor
    config: LanguageConfig

    def __post_init__(self) -> None:
        g = self.g
        # (B, 1, S, d / 2), the same for every layer
        tables = (_rotary_table(g, self.config, f) for f in (np.cos, np.sin))
        self.cos, self.sin = (
            g.op("Unsqueeze", g.op("Gather", table, "position_ids", axis=0), g.constant([1]))
            for table in tables
        )
        shut = g.constant(float(np.finfo(g.activations).min))
        self.bias = g.op("Unsqueeze", g.op("Where", "attn_mask", g.constant(0.0), shut), g.constant([2]))

    def _rotate(self, x: str) -> str:
        g = self.g
        low, high = g.op("Split", x, axis=-1, num_outputs=2, outputs=2)
        turned_low = g.op("Sub", g.op("Mul", low, self.cos), g.op("Mul", high, self.sin))
        turned_high = g.op("Add", g.op("Mul", high, self.cos), g.op("Mul", low, self.sin))
        return str(g.op("Concat", turned_low, turned_high, axis=-1))

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        g, c = self.g, self.config
        groups = c.heads // c.kv_heads
        q = g.op("Mul", self._rotate(q), g.constant(c.head_dim**-0.5))
        read = []
        for part, new in (("key", self._rotate(k)), ("value", v)):
            past = g.input(f"past.{i}.{part}", "activations", ["B", c.kv_heads, "P", c.head_dim])
            present = g.op("Concat", past, new, outputs=[f"present.{i}.{part}"], axis=2)
            g.output(present, present, "activations", ["B", c.kv_heads, "T", c.head_dim])
            read.append(g.op("Unsqueeze", present, g.constant([2])))  # (B, K, 1, T, d)
        key, value = read
        q = g.op("Reshape", q, g.constant([0, c.kv_heads, groups, -1, c.head_dim]))
        scores = g.op("Add", g.op("MatMul", q, g.transpose(key, [0, 1, 2, 4, 3])), self.bias)
        mixed = g.op("MatMul", g.softmax(scores), value)
        return g.reshape(mixed, [0, c.heads, -1, c.head_dim])
