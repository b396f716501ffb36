"""Deliberate mistakes in the picture, the encoder and the pixel decoder."""

from __future__ import annotations

import numpy as np
import onnx
from faulty import Faulty, insert, node
from onnx import helper, numpy_helper


def other_mean(b: Faulty) -> None:
    """CLIP's own constants, which PixelLM does not use."""
    b.manifest["image"]["mean"] = [122.77, 116.75, 104.09]


def padding_mask_dropped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        first = next(n for n in model.graph.node if "patch_valid" in n.input)
        insert(
            model,
            first,
            helper.make_node("Not", ["patch_valid"], ["dropped.a"]),
            helper.make_node("Or", ["patch_valid", "dropped.a"], ["dropped.b"]),
        )
        first.input[0] = "dropped.b"

    b.graph("encoder", edit)


def class_row_first(b: Faulty) -> None:
    """CLIP's own order of the position table, which PixelLM does not use: here rows moved on by one."""
    b.weight("encoder", "clip.patch_positions", lambda p: np.roll(p, -1, axis=1))


def activation_step_halved(b: Faulty) -> None:
    """One layer's input is cut off at half of its range."""

    def edit(model: onnx.ModelProto) -> None:
        for n in model.graph.node:
            if n.op_type in ("QuantizeLinear", "DequantizeLinear") and n.name.startswith("clip/layers.3/fc2"):
                value = next((t for t in model.graph.initializer if t.name == n.input[1]), None)
                if value is not None and not value.dims:
                    smaller = numpy_helper.from_array(numpy_helper.to_array(value) / 4, f"{value.name}/4")
                    if all(t.name != smaller.name for t in model.graph.initializer):
                        model.graph.initializer.append(smaller)
                    n.input[1] = smaller.name

    b.graph("encoder", edit)


def levels_swapped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        names = {"level_embed.0": "level_embed.1", "level_embed.1": "level_embed.0"}
        for n in model.graph.node:
            for i, value in enumerate(n.input):
                n.input[i] = names.get(value, value)

    b.graph("pixel_decoder", edit)


def third_for_sixth(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        sixth = next(
            t
            for t in model.graph.initializer
            if not t.dims
            and t.data_type == onnx.TensorProto.FLOAT
            and abs(numpy_helper.to_array(t) - 1 / 6) < 1e-6
        )
        sixth.CopyFrom(numpy_helper.from_array(np.float32(1 / 3), sixth.name))

    b.graph("pixel_decoder", edit)


def corners_aligned_in_resize(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        resize = next(n for n in model.graph.node if n.op_type == "Resize")
        for attribute in resize.attribute:
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"align_corners"

    b.graph("pixel_decoder", edit)


def projector_convolution_once(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        second = node(model, "mm_projector/Conv_3")
        for n in model.graph.node:
            for i, value in enumerate(n.input):
                if value == second.output[0]:
                    n.input[i] = second.input[0]
        model.graph.node.remove(second)

    b.graph("encoder", edit)


def corners_aligned_in_sampling(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for function in model.functions:
            for n in function.node:
                for attribute in n.attribute if n.op_type == "GridSample" else ():
                    if attribute.name == "align_corners":
                        attribute.i = 1 - attribute.i

    b.graph("encoder", edit)


def window_mask_dropped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        masked = next(n for n in model.graph.node if any("shift_mask" in value for value in n.input))
        masked.input[1] = masked.input[0]

    b.graph("encoder", edit)
