"""Deliberate mistakes in the language model, its cache, its twin, and the rows that it reads."""

from __future__ import annotations

import numpy as np
import onnx
from faulty import Faulty, insert, node, packed, unpacked
from onnx import helper, numpy_helper

SEG = 640  # of pixellm-tiny: the first codebook id of six


def block_transposed(b: Faulty) -> None:
    """A square weight stored (N, K) in place of (K, N)."""
    b.weight(
        "language",
        "language.layers.1.q_proj.weight.int4",
        lambda d: packed(unpacked(d).reshape(128, 128).T),
    )


def wrong_zero_point(b: Faulty) -> None:
    """Read as 0..15 around 8 where it was written around 7."""
    b.weight(
        "language",
        "language.layers.2.up_proj.weight.int4",
        lambda d: packed(np.clip(unpacked(d) + 1, -8, 7)),
    )


def one_blocks_scale_doubled(b: Faulty) -> None:
    """32 of 352 inputs of one layer: less than rounding does to its output."""

    def double(s: np.ndarray) -> np.ndarray:
        s[5] *= 2
        return s

    b.weight("language", "language.layers.0.down_proj.scale", double)


def overflow_in_a_norm(b: Faulty) -> None:
    """The squares of a norm summed in fp16, of inputs as large as a 7B model's: 65504 is its largest number."""

    def edit(model: onnx.ModelProto) -> None:
        norm = node(model, "layers.2/RMSNormalization")
        large = numpy_helper.from_array(np.float16(3000), "large")
        model.graph.initializer.append(large)
        x, weight = norm.input
        insert(
            model,
            norm,
            helper.make_node("Cast", [x], ["n1"], to=onnx.TensorProto.FLOAT16),
            helper.make_node("Mul", ["n1", "large"], ["n2"]),
            helper.make_node("Mul", ["n2", "n2"], ["n3"]),
            helper.make_node("ReduceMean", ["n3"], ["n4"], noop_with_empty_axes=0, keepdims=1),
            helper.make_node("Sqrt", ["n4"], ["n5"]),
            helper.make_node("Div", ["n2", "n5"], ["n6"]),
            helper.make_node("Cast", ["n6"], ["n7"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["n7", weight], [norm.output[0]]),
        )
        model.graph.node.remove(norm)

    b.graph("language", edit)


def head_scale_doubled(b: Faulty) -> None:
    def double(w: np.ndarray) -> np.ndarray:
        w[:, 64:96] *= 2  # head 2 of four
        return w

    b.weight("language", "language.layers.3.q_proj.weight", double)


def stale_cache_row(b: Faulty) -> None:
    """New rows are written one place too early once the cache has any: the last one that was read is lost."""

    def edit(model: onnx.ModelProto) -> None:
        readers = [n for n in model.graph.node if "write_indices" in n.input]
        for name, value in (("one", 1), ("zero", 0)):
            model.graph.initializer.append(numpy_helper.from_array(np.int64(value), f"stale.{name}"))
        insert(
            model,
            readers[0],
            helper.make_node("Sub", ["write_indices", "stale.one"], ["stale.a"]),
            helper.make_node("Max", ["stale.a", "stale.zero"], ["stale.b"]),
        )
        for n in readers:
            n.input[list(n.input).index("write_indices")] = "stale.b"

    b.graph("language", edit)


def rotary_swapped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for n in model.graph.node:
            if n.op_type == "RotaryEmbedding":
                n.input[1], n.input[2] = n.input[2], n.input[1]

    b.graph("language", edit)


def twin_sees_the_future(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        where = next(n for n in model.graph.node if n.op_type == "Where")
        where.input[2] = where.input[1]

    b.graph("language_compat", edit)


def head_row_off_by_one(b: Faulty) -> None:
    """Each codebook token gets the logit of the next one."""

    def roll(w: np.ndarray) -> np.ndarray:
        w[:, SEG : SEG + 6] = np.roll(w[:, SEG : SEG + 6], 1, axis=1)
        return w

    b.weight("language", "language.lm_head.weight", roll)


def seg_rows_off_by_one(b: Faulty) -> None:
    entry = b.manifest["embeddings"]
    rows = np.memmap(b.folder / "embeddings.bin", entry["dtype"], "r+", shape=tuple(entry["shape"]))
    rows[SEG : SEG + 6] = np.roll(np.array(rows[SEG : SEG + 6]), 1, axis=0)
    rows.flush()


def other_template(b: Faulty) -> None:
    b.manifest["prompt"]["template"] = b.manifest["prompt"]["template"].replace("USER:", "Human:")


def projectors_in_another_order(b: Faulty) -> None:
    b.weight("language", "condition_projector.weight", lambda w: np.roll(w, 1, axis=0))


def class_names_without_their_mark(b: Faulty) -> None:
    """Seen where classes are asked for, and nowhere else."""
    b.manifest["prompt"]["class_suffix"] = ""
