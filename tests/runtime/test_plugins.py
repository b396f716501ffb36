"""TensorRT plugins: the graph that TensorRT's parser gets, and a launch just as TensorRT would do it, by emulation."""

from __future__ import annotations

import ctypes
import inspect
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pixelrt.build import builder, plugins
from pixelrt.build.plugin_nodes import with_plugins
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.gpu import Gpu
from pixelrt.tensorrt import Library
from pixelrt_kernels.deform_attn.reference import deform_attn, level_table

from tests.doubles.bundle import installed

onnx = pytest.importorskip("onnx", reason="needs the export extra")

SHAPES = [(3, 5), (6, 4)]
HALF = "half"


def test_deform_attn_becomes_plugin_nodes(golden_psalm_bundle: Path) -> None:
    calls, before, after = replaced(golden_psalm_bundle / "encoder.fp16.onnx", "DeformAttn")
    for call, node in calls:
        value, levels, *rest = node.input
        assert [value, *rest] == list(call.input)
        table = onnx.numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == levels))
        shapes = np.reshape(onnx.helper.get_attribute_value(call.attribute[0]), (-1, 2))
        assert np.array_equal(table, level_table(shapes)) and table.dtype == np.int32
    assert len(after.graph.initializer) == len(before.graph.initializer) + 1  # one table for all layers
    other = (golden_psalm_bundle / "pixel_decoder.fp16.onnx").read_bytes()
    assert onnx.load_from_string(with_plugins(other)) == onnx.load_from_string(other)


def test_fuse_scales_becomes_a_plugin_node(golden_bundle_a: Path) -> None:
    calls, before, after = replaced(golden_bundle_a / "pixel_decoder.fp16.onnx", "FuseScales")
    assert [list(node.input) for _, node in calls] == [list(call.input) for call, _ in calls]
    assert len(calls) == 1 and after.graph.initializer == before.graph.initializer


def replaced(file: Path, name: str) -> tuple[list[tuple[Any, Any]], Any, Any]:
    """Calls of the function and the nodes in their place; the model before and after. All else is as it was."""
    content = file.read_bytes()
    before, after = (onnx.load_from_string(c) for c in (content, with_plugins(content)))
    assert [f.name for f in before.functions] == [name] and not after.functions
    pairs = list(zip(before.graph.node, after.graph.node, strict=True))
    calls = [(a, b) for a, b in pairs if a.op_type == name]
    assert calls and all(a == b for a, b in pairs if a.op_type != name)
    for call, node in calls:
        assert (node.op_type, node.domain, node.output) == (call.op_type, call.domain, call.output)
        kept = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert kept == {"plugin_namespace": b"pixelrt", "plugin_version": b"1", "aot": 1}
    return calls, before, after


class Shapes(tuple):  # type: ignore[type-arg]
    """ShapeExprs, of numbers."""

    @classmethod
    def from_tuple(cls, values: Any) -> Shapes:
        return cls(values)


class Described:
    """TensorDesc: the numbers are the expressions, but for the batch, which TensorRT does not know yet."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape_expr, self.shape, self.dtype = Shapes(shape), (-1, *shape[1:]), dtype

    def like(self) -> Described:
        return Described(self.shape_expr, self.dtype)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `register` gives to a made-up `tensorrt.plugin`."""
    found: dict[str, Any] = {}
    trtp: Any = ModuleType("made_up.plugin")
    trtp.TensorDesc, trtp.ShapeExprs, trtp.SymIntExprs = Described, Shapes, Shapes
    trtp.SymInt32, trtp.KernelLaunchParams = int, type("KernelLaunchParams", (SimpleNamespace,), {})
    trtp.register = lambda name: lambda function: found.update({f"register {name}": function})
    trtp.aot_impl = lambda name: lambda function: found.update({f"aot {name}": function})
    trt: Any = ModuleType("made_up")
    trt.DataType = SimpleNamespace(HALF=HALF)
    monkeypatch.setitem(__import__("sys").modules, "made_up.plugin", trtp)
    library = Library("tensorrt", trt, "10.16.1", "13")
    assert plugins.possible(library)
    plugins.register(library, b"ptx")
    return found


INPUTS = {
    "pixelrt::DeformAttn": ["value", "levels", "locations", "weights"],
    "pixelrt::FuseScales": ["previous", "features", "dense"],
}


def test_annotations_are_what_tensorrt_reads(registered: dict[str, Any]) -> None:
    assert set(INPUTS) == plugins.OPERATORS and len(registered) == 2 * len(INPUTS)
    for registration, function in registered.items():
        signature = inspect.signature(function)
        tensors = [n for n, p in signature.parameters.items() if p.annotation is Described]
        assert tensors == INPUTS[registration.split()[1]]


def launched(
    registered: dict[str, Any], emulation: Path, operator: str, tensors: list[Any], of: Any
) -> np.ndarray:
    """The output in float64 of a launch as TensorRT does it. Arguments: the inputs, the extra ones, the output."""
    descriptions = [Described(t.shape, HALF if t.dtype == np.float16 else "float") for t in tensors]
    out = registered[f"register {operator}"](*descriptions)
    assert out.dtype == (HALF if of == np.float16 else "float")
    kernel, ptx, params, extra = registered[f"aot {operator}"](*descriptions, (out,), 0)
    result = np.full(out.shape_expr, np.nan, of)
    arguments = [np.array([t.ctypes.data], np.uint64) for t in tensors]
    arguments += [np.array([number], np.int32) for number in extra]
    arguments.append(np.array([result.ctypes.data], np.uint64))
    held = (ctypes.c_void_p * len(arguments))(*(a.ctypes.data for a in arguments))
    blocks = (params.grid_x, getattr(params, "grid_y", 1), getattr(params, "grid_z", 1))
    grid = (ctypes.c_uint * 6)(*blocks, params.block_x, 1, 1)
    assert not ctypes.CDLL(str(emulation)).emulate(kernel.encode(), grid, params.shared_mem, 0, held)
    assert ptx == b"ptx"
    return result.astype(np.float64)


@pytest.mark.parametrize(("of", "width"), [(np.float32, 8), (np.float16, 8), (np.float16, 3)])
def test_deform_attn_as_tensorrt_launches_it(
    registered: dict[str, Any], emulation: Path, of: Any, width: int
) -> None:
    rng = np.random.default_rng(1)
    batch, queries, heads, points = 2, 37, 2, 4
    count = sum(h * w for h, w in SHAPES)
    value = rng.normal(size=(batch, count, heads, width)).astype(of)
    locations = rng.uniform(-0.2, 1.2, (batch, queries, heads, len(SHAPES), points, 2)).astype(np.float32)
    weights = rng.random(locations.shape[:5]).astype(of) / 8
    tensors = [value, level_table(SHAPES), locations, weights]
    got = launched(registered, emulation, "pixelrt::DeformAttn", tensors, of)
    wanted = deform_attn(value, SHAPES, locations, weights, of=np.float64)
    assert got.shape == (batch, queries, heads * width)
    # One rounding of a result below 4; in float32 a few.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3 if of == np.float16 else 1e-5)


@pytest.mark.parametrize(("of", "channels"), [(np.float32, 8), (np.float16, 96), (np.float16, 5)])
def test_fuse_scales_as_tensorrt_launches_it(
    registered: dict[str, Any], emulation: Path, of: Any, channels: int
) -> None:
    rng = np.random.default_rng(2)
    previous = rng.normal(0, 4, (3, 49, 1)).astype(np.float32)
    features = rng.normal(size=(1, 49, channels)).astype(of)
    dense = rng.normal(size=(1, 1, channels)).astype(of)
    got = launched(registered, emulation, "pixelrt::FuseScales", [previous, features, dense], of)
    assert got.shape == (3, 49, channels)
    wanted = (1 / (1 + np.exp(-previous.astype(np.float64))) + 1) * features + dense.astype(np.float64)
    # One rounding of a result below 12; in float32 a few, and the fast exponential.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4e-3 if of == np.float16 else 2e-5)


def test_a_build_that_cannot_have_them(golden_psalm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.read(golden_psalm_bundle, verify=False)
    monkeypatch.setattr(builder, "find_gpu", lambda: Gpu("made up", "sm_87", 8 << 30, True, "12.6"))
    with (
        installed(),
        pytest.raises(InputError, match=r"--plugins needs TensorRT 10\.9 or newer .* Leave it out"),
    ):
        builder.site_of(bundle, builder.Wish(backend="tensorrt", plugins=True))


def test_where_plugins_are_possible() -> None:
    module: Any = ModuleType("nothing_such")
    assert not plugins.possible(Library("tensorrt", module, "10.16.1", ""))
    assert not plugins.possible(Library("tensorrt", module, "10.3.0", ""))
    assert not plugins.possible(Library("tensorrt-rtx", module, "1.7.1", ""))
