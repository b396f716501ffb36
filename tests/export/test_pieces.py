"""A bundle that is checked a layer at a time: the same findings as of one that is opened whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from pixelrt.bundle import Bundle
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import Record, read_records
from pixelrt_export.verify import subject
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.convoy import Shared, carry
from pixelrt_export.verify.pieces import model_of, pieces
from pixelrt_export.verify.subject import Subject, abreast

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"


# ---- graphs -------------------------------------------------------------------------------------------------


def chain() -> onnx.GraphProto:
    """y = ((2 x) + s)^2 + s with s = x + 1, cut behind `a` = 2 x + s; `b` is needed by nobody."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["s"]),
        helper.make_node("Mul", ["x", "two"], ["t"]),
        helper.make_node("Add", ["t", "s"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["q"]),
        helper.make_node("Add", ["q", "s"], ["y"]),
        helper.make_node("Neg", ["x"], ["b"]),
    ]
    kind = onnx.TensorProto.FLOAT
    x, y, b = (helper.make_tensor_value_info(name, kind, [None]) for name in "xyb")
    tensors = [helper.make_tensor(name, kind, [], [value]) for name, value in (("one", 1.0), ("two", 2.0))]
    return helper.make_graph(nodes, "chain", [x], [y, b], tensors)


def test_a_value_crosses_as_many_cuts_as_it_must() -> None:
    first, second = pieces(chain(), ["a"], {"y", "b"})
    assert first.nodes == (0, 1, 2) and set(first.gives) == {"a", "s"} and first.reads == ("x",)
    assert second.nodes == (3, 4, 5) and set(second.reads) == {"a", "s", "x"} and second.gives == ("y", "b")
    assert first.last == {"t", "one", "two"} and {"a", "s", "q"} <= second.last


def test_a_piece_has_the_tensors_that_it_reads_and_no_others() -> None:
    model = helper.make_model(chain(), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    first, second = (
        model_of(model, piece, {name: np.dtype(np.float32) for name in piece.reads})
        for piece in pieces(model.graph, ["a"], {"y", "b"})
    )
    assert [t.name for t in first.graph.initializer] == ["one", "two"] and not second.graph.initializer
    x = np.float32([3, -1])
    values: dict[str, Any] = {"x": x}
    for part in (first, second):
        session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        given = {i.name: values[i.name] for i in session.get_inputs()}
        values |= dict(zip(names, session.run(names, given), strict=True))
    assert np.array_equal(values["y"], (2 * x + x + 1) ** 2 + x + 1) and np.array_equal(values["b"], -x)


# ---- the convoy ---------------------------------------------------------------------------------------------


class Doubling:
    """Answers with twice what it is asked, and keeps how many asked together."""

    file = memory = None

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def together(self, calls: Any) -> list[dict[str, Any]]:
        self.asked.append([inputs["x"] for inputs, _ in calls])
        if 13 in self.asked[-1]:
            raise RuntimeError("unlucky")
        return [{"y": 2 * inputs["x"]} for inputs, _ in calls]


def test_jobs_go_through_an_engine_together() -> None:
    one, other = Doubling(), Doubling()
    first, second = Shared(one), Shared(other)

    def job(x: int, times: int) -> int:
        for _ in range(times):
            x = first({"x": x})["y"]
        return second({"x": x})["y"] if times == 1 else x

    assert carry([lambda: job(1, 1), lambda: job(10, 3), lambda: job(5, 0), lambda: job(7, 2)]) == [
        4,
        80,
        5,
        28,
    ]
    assert one.asked == [[1, 10, 7], [20, 14], [40]] and other.asked == [[2]]
    assert first({"x": 4}) == {"y": 8}  # outside of any job


def test_what_a_job_raises_is_raised_when_all_have_ended() -> None:
    engine, ended = Doubling(), []
    shared = Shared(engine)

    def job(x: int) -> None:
        if x == 0:
            raise ValueError("nothing to double")
        shared({"x": x})
        ended.append(x)

    with pytest.raises(ValueError, match="nothing to double"):
        carry([lambda: job(1), lambda: job(0), lambda: job(2)])
    assert ended == [1, 2]
    with pytest.raises(RuntimeError, match="unlucky"):
        carry([lambda: job(13)])


# ---- bundles ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(
        TINY, tmp_path_factory.mktemp("tiny") / "int4", precision="int4", settings=Settings(calibrated=False)
    )


@pytest.mark.parametrize("graph", ["encoder", "language", "language_compat", "pixel_decoder"])
@pytest.mark.parametrize("family", ["pixellm", "psalm"])
def test_a_graph_in_pieces_computes_what_it_does_whole(
    tiny: Path, golden_psalm_bundle: Path, family: str, graph: str
) -> None:
    """Outputs and places. ONNX Runtime merges what stands next to each other across a cut, so the last bits differ.

    2e-5: some 170 roundings of fp32 (1.2e-7) at the largest number.
    """
    bundle = Bundle.read(tiny if family == "pixellm" else golden_psalm_bundle)
    engines = [Subject(bundle, whole).engine(graph, taps=lambda place: True) for whole in (0, 1 << 60)]
    rng = np.random.default_rng(5)
    sizes = {"B": 1, "S": 7, "T": 7, "M": 9, "P": 0, "N": 2, "R": 3, "K": 2}
    inputs = {}
    for tensor in engines[1].file.inputs:
        shape = [size if isinstance(size, int) else sizes.get(size, 2) for size in tensor.shape]
        inputs[tensor.name] = example(rng, tensor.name, tensor.dtype, shape)
    found, wanted = (engine(inputs) for engine in engines)
    assert isinstance(engines[0], Shared)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and np.isfinite(value).all()
        assert np.abs(found[name] - value).max() <= 2e-5 * np.abs(value).max(), name


def example(rng: np.random.Generator, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    if name == "attn_mask":
        return np.broadcast_to(np.tri(shape[2], shape[3], dtype=np.bool_), shape)
    if name == "position_ids":
        return np.arange(shape[1])[None]
    if dtype == "bool":
        return np.ones(shape, np.bool_)
    if dtype == "int64":
        return np.zeros(shape, np.int64) if "write" in name else np.arange(np.prod(shape)).reshape(shape) % 2
    return np.float32(rng.standard_normal(shape))


def test_a_piece_is_opened_once_for_all_questions(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And as many questions go together as there is room for caches."""
    opened: list[int] = []
    session = subject.TappedEngine._session

    def counted(self: Any, number: int, *rest: Any) -> Any:
        opened.append(number)
        return session(self, number, *rest)

    monkeypatch.setattr(subject.TappedEngine, "_session", counted)
    part = Subject(Bundle.read(tiny), 0)
    engine = part.engine("language")
    assert engine.engine.cut and abreast(engine) > 12  # type: ignore[attr-defined]
    records = [
        Record(ROOT / "calib_data" / "scene_01.png", f"Segment the {what}.") for what in ("cup", "dog")
    ]
    monkeypatch.setattr(subject, "CACHES", 2 * subject.POSITIONS * 4 * 2 * 4 * 128)
    original = open_original(TINY)
    both = part.answers(records, original.listen, lambda done: None)
    together, opened[:] = list(opened), []
    one = [part.answers([record], original.listen, lambda done: None)[0] for record in records]
    assert [said.words for said, _ in both] == [said.words for said, _ in one]
    assert len(together) < 0.8 * len(opened)


@pytest.mark.parametrize("family", ["pixellm", "psalm"])
def test_findings_are_those_of_a_bundle_opened_whole(
    tiny: Path, golden_psalm_bundle: Path, golden_psalm_checkpoint: Path, family: str
) -> None:
    bundle, checkpoint = {
        "pixellm": (tiny, TINY),
        "psalm": (golden_psalm_bundle, golden_psalm_checkpoint),
    }[family]
    original = open_original(checkpoint)
    records = read_records(None, original.typed)[:2]
    cut, whole = (verify_bundle(bundle, original, records, whole=size) for size in (0, 1 << 60))
    assert cut.same == whole.same
    pairs = list(zip(cut.outcome.findings, whole.outcome.findings, strict=True))
    assert len(pairs) > 100
    for a, b in pairs:
        assert (a.stage, a.where, a.question, a.limit) == (b.stage, b.where, b.question, b.limit)
        # differing roundings move an error by far less than what it is held against; a wrong piece by many times that
        assert abs(a.error - b.error) <= 0.02 * a.limit, a


# ---- memory -------------------------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
from anonymous_memory import sampled
from types import SimpleNamespace
import numpy as np
from pixelrt.bundle import GraphFile
from pixelrt_export.verify import subject

folder, whole, layers, side, subject.WIDENED = Path(sys.argv[1]), *map(int, sys.argv[2:])
bundle = SimpleNamespace(
    path=folder,
    manifest={"graphs": {"g": {"taps": {f"layers.{i}": f"x{i + 1}" for i in range(layers)}}}},
    graph=lambda name, activations: GraphFile(folder / "g.onnx", activations, 20, None, (), ()),
)
with sampled() as memory:
    engine = subject.Subject(bundle, whole).engine("g", taps=lambda place: True)
    found = engine({"x0": np.ones((64, side), np.float32)})
    assert len(found) == layers + 1
print(max(memory) - memory[0])
"""


def stack(folder: Path, layers: int, side: int) -> None:
    """Layers with a weight (side, side) in fp16, which are widened."""
    rng = np.random.default_rng(3)
    rng.normal(scale=0.03, size=(layers, side, side)).astype(np.float16).tofile(folder / "w.data")
    nodes, tensors = (
        [],
        [onnx.numpy_helper.from_array(np.array([n]), name) for n, name in ((0, "first"), (64, "last"))],
    )
    for i in range(layers):
        tensor = onnx.TensorProto(name=f"w{i}", data_type=onnx.TensorProto.FLOAT16, dims=[side, side])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        size = side * side * 2
        for key, value in (("location", "w.data"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("Cast", [f"w{i}"], [f"wide{i}"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"wide{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Concat", [f"y{i}"] * 16, [f"tall{i}"], axis=0))  # 4 MB for a moment
        nodes.append(helper.make_node("Slice", [f"tall{i}", "first", "last"], [f"x{i + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, [None, side]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "g.onnx").write_bytes(model.SerializeToString())


def used(folder: Path, layers: int, side: int, whole: int, widened: int = 1 << 26) -> float:
    """MiB, of a process that runs them."""
    numbers = map(str, (whole, layers, side, widened))
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), *numbers],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")


@needs_proc
def test_one_piece_is_in_memory_and_not_all(tmp_path: Path) -> None:
    """24 layers of 2 MB in fp16, 100 MB as ONNX Runtime widens and keeps them; what each gives is 256 KB."""
    stack(tmp_path, 24, 1024)
    all_of_it, pieces_of_it = (used(tmp_path, 24, 1024, whole) for whole in (1 << 30, 0))
    assert all_of_it > 90 and pieces_of_it < all_of_it / 3, (all_of_it, pieces_of_it)


@needs_proc
def test_a_wide_tensor_is_not_repacked(tmp_path: Path) -> None:
    """One layer of 32 MB in fp16, widened: 64 MB, and once more where a session prepares its weights."""
    stack(tmp_path, 1, 4096)
    prepared, as_written = (used(tmp_path, 1, 4096, 0, widened) for widened in (1 << 30, 0))
    assert prepared > 120 and as_written < 0.7 * prepared, (prepared, as_written)
