"""An engine that remembers which cache it ran on last gives what one gives that binds everything anew."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the export extra")

from onnx import TensorProto, helper, save
from pixelrt.bundle import GraphFile
from pixelrt.engine_ort import OrtEngine


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """present = past + the sum of x; square = x x."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Add", ["past.0.key", "sum"], ["present.0.key"]),
        helper.make_node("Mul", ["x", "x"], ["square"]),
    ]
    shapes = {"x": ["S"], "past.0.key": ["M", 2], "present.0.key": ["M", 2], "square": ["S"]}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in shapes.items()}
    graph = helper.make_graph(
        nodes, "toy", [infos["x"], infos["past.0.key"]], [infos["square"], infos["present.0.key"]]
    )
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return GraphFile(path, "float32", 20, "in_place", (), ())


def run(engine: OrtEngine, cache: np.ndarray, x: np.ndarray) -> np.ndarray:
    found = engine({"x": x, "past.0.key": cache}, {"present.0.key": cache})
    assert found["present.0.key"] is cache
    return np.asarray(found["square"])


def test_as_if_bound_anew(file: GraphFile) -> None:
    """Two caches by turns, one of them replaced by a longer one; inputs of several lengths and types."""
    rng, engine = np.random.default_rng(0), OrtEngine(file, threads=1)
    caches = [np.zeros((4, 2), np.float32), np.zeros((5, 2), np.float32)]
    expected = [cache.copy() for cache in caches]
    said: list[tuple[np.ndarray, np.ndarray]] = []
    for number, which in enumerate([0, 0, 1, 0, 1, 1, 1, 0, 0]):
        if number == 5:
            caches[1] = np.pad(caches[1], ((0, 3), (0, 0)))
            expected[1] = caches[1].copy()
        x = rng.integers(-9, 9, 1 + 40 * (number % 3)).astype(np.float32 if number % 2 else np.float64)
        said.append((run(engine, caches[which], x), x))
        expected[which] += x.sum().astype(np.float32)
        for cache, wanted in zip(caches, expected, strict=True):
            assert np.array_equal(cache, wanted)
    for square, x in said:  # and no later run wrote to what an earlier one gave
        assert np.array_equal(square, x * x)


def test_a_cache_is_given_back(file: GraphFile) -> None:
    engine, cache = OrtEngine(file, threads=1), np.zeros((4, 2), np.float32)
    run(engine, cache, np.ones(3, np.float32))
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_threads_have_their_own(file: GraphFile) -> None:
    engine = OrtEngine(file, threads=1)

    def count(step: int) -> np.ndarray:
        cache = np.zeros((4, 2), np.float32)
        for _ in range(100):
            run(engine, cache, np.full(2, step, np.float32))
        return cache

    with ThreadPoolExecutor(4) as pool:
        for step, cache in zip(range(4), pool.map(count, range(4)), strict=True):
            assert np.array_equal(cache, np.full((4, 2), 200 * step, np.float32))


def test_a_run_that_fails_leaves_nothing_behind(file: GraphFile) -> None:
    engine, cache = OrtEngine(file, threads=1), np.zeros((4, 2), np.float32)
    run(engine, cache, np.ones(3, np.float32))
    with pytest.raises(Exception, match="x"):
        run(engine, cache, np.ones((3, 3), np.float32))
    assert np.array_equal(run(engine, cache, np.full(3, 2, np.float32)), np.full(3, 4, np.float32))
