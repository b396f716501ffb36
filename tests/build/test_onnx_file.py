"""What is read of, and set in, an ONNX file without the onnx package equals what that package sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from pixelrt.onnx_file import external_bytes, operators, with_size

onnx = pytest.importorskip("onnx", reason="needs the export extra")


def test_a_size_is_set_and_nothing_else(fp16_bundle: Path) -> None:
    content = (fp16_bundle / "language.fp16.onnx").read_bytes()
    wanted = onnx.load_model_from_string(content)
    for value in (*wanted.graph.input, *wanted.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "M":
                dimension.dim_value = 640
    changed = with_size(content, "M", 640)
    assert onnx.load_model_from_string(changed) == wanted
    assert changed != content == with_size(content, "Z", 640)


@pytest.mark.parametrize("name", ["encoder", "language", "language_compat", "pixel_decoder"])
def test_operators_and_weights(fp16_bundle: Path, name: str) -> None:
    file = fp16_bundle / f"{name}.fp16.onnx"
    model = onnx.load(file, load_external_data=False)
    assert operators(file.read_bytes()) == {node.op_type for node in model.graph.node}
    places = {
        (pairs["offset"], int(pairs["length"]))
        for tensor in model.graph.initializer
        if (pairs := {pair.key: pair.value for pair in tensor.external_data})
    }
    assert external_bytes(file.read_bytes()) == sum(length for _, length in places)


def test_operators_of_functions(golden_psalm_fp16_bundle: Path) -> None:
    found = operators((golden_psalm_fp16_bundle / "encoder.fp16.onnx").read_bytes())
    assert {"pixelrt::DeformAttn", "GridSample", "Conv"} <= found
