"""Sketches, and the making of golden outputs. What they find out is in test_verdict.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.goldens.sketch import distance, signs, sketch
from pixelrt.goldens.take import Making

RNG = np.random.default_rng(5)


def slow_sketch(values: np.ndarray, cells: int) -> np.ndarray:
    """By the formula, a value at a time."""
    found = np.zeros(cells)
    for i, value in enumerate(values.reshape(-1)):
        cell = max(b for b in range(cells) if b * values.size // cells <= i)
        found[cell] += (1 - 2 * (mixed(i) >> 31)) * float(value)
    return found.astype(np.float32)


def mixed(i: int) -> int:
    """Wellons' lowbias32, but for its last shift, which leaves the highest bit alone."""
    i = ((i ^ i >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    return ((i ^ i >> 15) * 0x846CA68B) & 0xFFFFFFFF


@pytest.mark.parametrize(("shape", "cells"), [((3, 7), 4), ((33,), 32), ((5, 5, 5), 7), ((64,), 8)])
def test_it_is_its_formula(shape: tuple[int, ...], cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=shape).astype(np.float32)
    wanted = slow_sketch(values, cells)
    np.testing.assert_allclose(sketch(values, cells), wanted, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr("pixelrt.goldens.sketch.SLAB", 9)  # a few cells at once
    np.testing.assert_allclose(sketch(values, cells), wanted, rtol=1e-6, atol=1e-6)


def test_a_small_tensor_is_its_own() -> None:
    values = RNG.normal(size=(2, 3)).astype(np.float16)
    assert np.array_equal(sketch(values), values.reshape(-1).astype(np.float32))


@pytest.mark.parametrize("error", [0.001, 0.01, 0.3])
def test_the_distance_of_sketches_is_the_tensors_own(error: float) -> None:
    """Within 10 %: five times the 2 % of 4096 cells."""
    golden = RNG.normal(size=(40, 50, 60)).astype(np.float32)
    here = golden + error * RNG.normal(size=golden.shape).astype(np.float32)
    assert distance(sketch(here), sketch(golden)) == pytest.approx(error, rel=0.1)


def test_signs_are_as_many_of_each() -> None:
    assert abs(signs(0, 100_000).mean()) < 0.02


def test_every_number_counts() -> None:
    golden = RNG.normal(size=50_000).astype(np.float32)
    for at in (0, 1, 24_999, 49_999):
        here = golden.copy()
        here[at] += 100
        assert distance(sketch(here), sketch(golden)) == pytest.approx(100 / np.linalg.norm(golden), rel=0.05)
        here[at] = np.nan
        assert distance(sketch(here), sketch(golden)) == math.inf
    assert distance(sketch(golden[1:]), sketch(golden)) > 1
    assert distance(sketch(golden[:10]), sketch(golden)) == math.inf


def test_what_is_not_finite_is_no_golden() -> None:
    take = Making()
    with pytest.raises(InputError, match="hidden of the golden questions is not finite"):
        take.fix("hidden", np.array([1e6]))  # more than float16 holds
    with pytest.raises(InputError, match="not finite"):
        take.see("encoder", "x", np.array([np.inf]))


def test_the_margin_of_a_choice() -> None:
    take = Making()
    assert take.choose("x.1", np.array([0.0, 3.0, 2.5, 3.0], np.float32)) == 1
    assert take.choices["x.1"]["margin"] == 0.0
    take.choose("x.2", np.array([0.0, 3.0, 1.0], np.float32))
    assert take.choices["x.2"] == {"token": 1, "margin": 2.0, "scale": pytest.approx(math.sqrt(10 / 3))}


MEMORY = """
import sys
from pathlib import Path
from anonymous_memory import sampled
from pixelrt.bundle import GraphFile
from pixelrt.engine_ort import OrtEngine
import numpy as np

with sampled() as memory:
    file = GraphFile(Path(sys.argv[1]), "float32", 20, None, (), ())
    engine = OrtEngine(file, threads=1, plain=sys.argv[2] == "plain")
    for _ in range(3):
        engine({"x": np.ones((1, 1024), np.float32)})
print(max(memory) - memory[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_plain_engines_hold_one_layer_and_not_all(tmp_path: Path) -> None:
    """24 layers of 2 MB in fp16, 100 MB as ONNX Runtime usually widens and keeps them."""
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    from onnx import TensorProto, helper

    layers, side = 24, 1024
    RNG.normal(size=(layers, side, side)).astype(np.float16).tofile(tmp_path / "w.data")
    nodes, tensors = [], []
    for i in range(layers):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT16, dims=[side, side])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", "w.data"),
            ("offset", i * side * side * 2),
            ("length", side * side * 2),
        ):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("Cast", [f"w{i}"], [f"wide{i}"], to=TensorProto.FLOAT))
        given, out = "x" if i == 0 else f"x{i}", "y" if i == layers - 1 else f"x{i + 1}"
        nodes.append(helper.make_node("MatMul", [given, f"wide{i}"], [out]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    assert onnx.__version__

    def used(how: str) -> float:
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "g.onnx"), how]
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    usual, plain = used("usual"), used("plain")
    print(f"{usual:.0f} MB and {plain:.0f} MB")
    # One layer is 4 MB wide; 30 MB leave room for the library's own.
    assert usual > 90 and plain < 30
