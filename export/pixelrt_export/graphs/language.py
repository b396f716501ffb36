"""A decoder-only language model over embeddings, with a cache, as one ONNX graph in two spellings.

`in_place` (opset 24): the cache is a buffer of fixed length, bound to input and output at once; TensorScatter
writes the new rows and Attention reads the first T of them, ONNX Runtime and TensorRT >= 10.15. With fp32 activations,
which only ONNX Runtime runs, one operator of its own does both.
`concat` (opset 21): past in, past + new out, attention and rotary embedding spelled out. TensorRT before 10.15
and ONNX Runtime 1.23, the newest for Python 3.10.

Letters: B rows, S new tokens, M cache length, P past tokens, T = tokens attended to, R rows asked for,
H width, V vocabulary, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from pixelrt_export.graph import Graph
from pixelrt_export.graphs.llama import Attend, Llama
from pixelrt_export.graphs.phi import Phi
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.shortlist import shortlist_logits

Tensor = Callable[[str], np.ndarray]
Read = Callable[[str, Callable[[str], str]], None]  # last states, final norm -> outputs
Head = Callable[[Graph], Read]
OPSETS = {"in_place": 24, "concat": 21}
MODELS = {"llama": Llama, "phi": Phi}


def build_language(g: Graph, tensor: Tensor, config: LanguageConfig, cache: str, head: Head) -> None:
    """inputs_embeds, position_ids, attn_mask (+ write_indices), cache and the head's inputs -> its outputs, cache.

    attn_mask bool (B, 1, S, T), True where a new token may look. head: declares the inputs it needs, and what it
    returns turns the last layer's states (B, S, H) and the final norm into outputs.
    """
    x = g.input("inputs_embeds", "activations", ["B", "S", config.hidden])
    g.input("position_ids", "int64", ["B", "S"])
    g.input("attn_mask", "bool", ["B", 1, "S", "T"])
    read = head(g)
    attend = _attention(g, config, cache)
    model = MODELS[config.kind](g, tensor, config)
    for i in range(config.layers):
        with g.scope(f"layers.{i}"):
            x = g.tap(f"language.layers.{i}", model.block(i, x, attend))
    with g.scope("head"):
        read(x, model.final_norm)


def build_layer(g: Graph, tensor: Tensor, config: LanguageConfig, i: int) -> None:
    """Layer i alone, in the spelling `concat`: inputs_embeds, position_ids, attn_mask, cache -> states, cache."""
    x = g.input("inputs_embeds", "activations", ["B", "S", config.hidden])
    g.input("position_ids", "int64", ["B", "S"])
    g.input("attn_mask", "bool", ["B", 1, "S", "T"])
    block = MODELS[config.kind](g, tensor, config).block
    g.output(block(i, x, _Concat(g, config)), "states", "activations", ["B", "S", config.hidden])


def _attention(g: Graph, config: LanguageConfig, cache: str) -> Attend:
    if cache == "concat":
        return _Concat(g, config)
    # What runs with fp32 activations is ONNX Runtime.
    return (_Grouped if g.activations == "float32" else _InPlace)(g, config)


def token_head(tensor: Tensor, config: LanguageConfig, shortlist: bool = False) -> Head:
    """logit_rows (R,): which of the S rows get logits (B, R, V) and post-norm hidden states (B, R, H).

    shortlist: all logits but the two largest of each row may be approximate (`quantize.shortlist`).
    """

    def declare(g: Graph) -> Read:
        rows = g.input("logit_rows", "int64", ["R"])

        def read(x: str, norm: Callable[[str], str]) -> None:
            hidden = norm(g.op("Gather", x, rows, axis=1))
            product = shortlist_logits if shortlist else Graph.linear
            logits = product(g, hidden, "language.lm_head", lambda: tensor("lm_head.weight"))
            g.output(logits, "logits", "float32", ["B", "R", config.vocab])
            g.output(hidden, "hidden", "activations", ["B", "R", config.hidden])

        return read

    return declare


def _rotary_table(g: Graph, config: LanguageConfig, function: Callable[[np.ndarray], np.ndarray]) -> str:
    """cos or sin of position * theta^(-2j / d), (max_positions, d / 2), d rotary dims; angles in float64."""

    def make() -> np.ndarray:
        d = config.rotary_dims
        frequency = config.rope_theta ** -(np.arange(0, d, 2, dtype=np.float64) / d)
        return function(np.outer(np.arange(config.max_positions), frequency)).astype(np.float32)

    return g.weight(f"language.rotary_{function.__name__}", make)


def _heads(g: Graph, config: LanguageConfig, q: str, k: str, v: str) -> tuple[str, str, str]:
    """(B, S, heads * d) -> (B, heads, S, d)"""
    return (
        g.split_heads(q, config.heads),
        g.split_heads(k, config.kv_heads),
        g.split_heads(v, config.kv_heads),
    )


@dataclass
class _InPlace:
    """Attention over a cache that is written where it lies."""

    g: Graph
    config: LanguageConfig

    def __post_init__(self) -> None:
        g = self.g
        g.input("write_indices", "int64", ["B"])
        self.seen = g.op("Shape", "attn_mask", start=3, end=4)
        self.cos, self.sin = _rotary_table(g, self.config, np.cos), _rotary_table(g, self.config, np.sin)

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        g, shape = self.g, ["B", self.config.kv_heads, "M", self.config.head_dim]
        q, k, v = _heads(g, self.config, q, k, v)
        rotary = self.config.rotary_dims
        partial = {} if rotary == self.config.head_dim else {"rotary_embedding_dim": rotary}
        q, k = (g.op("RotaryEmbedding", x, self.cos, self.sin, "position_ids", **partial) for x in (q, k))
        read = []
        for part, new in (("key", k), ("value", v)):
            past = g.input(f"past.{i}.{part}", "activations", shape)
            present = f"present.{i}.{part}"
            g.op("TensorScatter", past, new, "write_indices", outputs=[present], axis=-2)
            g.output(present, present, "activations", shape)
            # Only what is filled: without the Slice the whole buffer is multiplied every step.
            read.append(g.op("Slice", present, g.constant([0]), self.seen, g.constant([2])))
        # No softmax_precision: TensorRT's parser refuses the attribute; the kernel chooses, as ONNX Runtime's does.
        scale = self.config.head_dim**-0.5
        mixed = g.op("Attention", q, *read, "attn_mask", is_causal=0, scale=scale)
        return g.reshape(g.transpose(mixed, [0, 2, 1, 3]), [0, 0, -1])


@dataclass
class _Grouped:
    """The same in ONNX Runtime's own operator, which writes the cache and reads it where it lies.

    Its kernel wants B = 1 where several tokens follow others. It could turn q and k too: where tokens follow others it
    takes the position of each, but of a prompt's first tokens (S = T) only the first one's (1.31.1; its schema says so
    too). There positions jump where padding is left out, and repeat where drafts branch.
    """

    g: Graph
    config: LanguageConfig

    def __post_init__(self) -> None:
        g = self.g
        g.input("write_indices", "int64", ["B"])
        seen, new = g.op("Shape", "attn_mask", start=3, end=4), g.op("Shape", "attn_mask", start=2, end=3)
        last = g.op("Sub", g.op("Add", "write_indices", new), g.constant([1]))
        self.last, self.seen = (
            g.op("Cast", x, to=onnx.TensorProto.INT32) for x in (last, g.op("Squeeze", seen))
        )
        shut = g.constant(float(np.finfo(np.float32).min))
        self.bias = g.op("Where", "attn_mask", g.constant(0.0), shut)
        self.cos, self.sin = _rotary_table(g, self.config, np.cos), _rotary_table(g, self.config, np.sin)

    def _rotate(self, x: str, heads: int) -> str:
        """x (B, S, heads * d)"""
        rotary = self.config.rotary_dims
        partial = {} if rotary == self.config.head_dim else {"rotary_embedding_dim": rotary}
        inputs = (x, self.cos, self.sin, "position_ids")
        return str(self.g.op("RotaryEmbedding", *inputs, num_heads=heads, **partial))

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        g, c = self.g, self.config
        shape = ["B", c.kv_heads, "M", c.head_dim]
        past = [g.input(f"past.{i}.{part}", "activations", shape) for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        new = self._rotate(q, c.heads), self._rotate(k, c.kv_heads), v
        mixed = f"layers.{i}/GroupQueryAttention"
        g.op(
            "GroupQueryAttention",
            *new,
            *past,
            self.last,
            self.seen,
            *["", "", ""],  # it turns nothing itself
            self.bias,
            outputs=[mixed, *present],
            domain="com.microsoft",
            num_heads=c.heads,
            kv_num_heads=c.kv_heads,
            scale=c.head_dim**-0.5,
        )
        for name in present:
            g.output(name, name, "activations", shape)
        return mixed


@dataclass
class _Concat:
    """Attention over past and new keys joined, in operators every runtime has."""

    g: Graph
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
        g, rotary, width = self.g, self.config.rotary_dims, self.config.head_dim
        still = [] if rotary == width else [g.slice(x, 3, rotary, width)]
        turning = g.slice(x, 3, 0, rotary) if still else x
        low, high = g.op("Split", turning, axis=-1, num_outputs=2, outputs=2)
        turned_low = g.op("Sub", g.op("Mul", low, self.cos), g.op("Mul", high, self.sin))
        turned_high = g.op("Add", g.op("Mul", high, self.cos), g.op("Mul", low, self.sin))
        return str(g.op("Concat", turned_low, turned_high, *still, axis=-1))

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        g, c = self.g, self.config
        q, k, v = _heads(g, c, q, k, v)
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
        mixed = g.reshape(mixed, [0, c.heads, -1, c.head_dim])
        return g.reshape(g.transpose(mixed, [0, 2, 1, 3]), [0, 0, -1])
