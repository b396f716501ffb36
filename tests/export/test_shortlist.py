"""`quantize.shortlist`: the two largest logits of every row, and whose they are, are those of the whole head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pixelrt
import pytest
from faulty import Faulty
from onnx import helper
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.recording import Recording
from pixelrt.segmenter import open_bundle
from pixelrt_export.export import export_bundle
from pixelrt_export.graph import Graph, plain_product
from pixelrt_export.quantize import plan, shortlist
from pixelrt_export.quantize.plan import Settings, with_shortlist
from pixelrt_export.quantize.records import read_records
from pixelrt_export.quantize.shortlist import NEAR, shortlist_logits
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.rerun import rerun
from pixelrt_export.weight_file import WeightFile

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"
WIDTH, VOCAB = 96, 1500
Run = Callable[[np.ndarray], np.ndarray]


def heads(folder: Path, weight: np.ndarray) -> dict[str, Run]:
    """x (B, R, H) -> logits: of the whole head, with a shortlist, and in 8 bits alone. weight (V, H)"""

    def build(kind: str, weights: WeightFile) -> None:
        product = with_shortlist(plain_product)
        g = Graph(kind, weights, activations="float32", storage="float16", opset=24, product=product)
        x = g.input("x", "float32", ["B", "R", weight.shape[1]])
        multiply, name = {
            "whole": (Graph.linear, "language.lm_head"),
            "shortlist": (shortlist_logits, "language.lm_head"),
            "near": (Graph.linear, NEAR),
        }[kind]
        g.output(multiply(g, x, name, lambda: weight), "logits", "float32", ["B", "R", len(weight)])
        g.save(folder / f"{kind}.onnx")

    found: dict[str, Run] = {}
    with WeightFile(folder / "weights.data") as weights:
        for kind in ("whole", "shortlist", "near"):
            build(kind, weights)
    for kind in ("whole", "shortlist", "near"):
        session = onnxruntime.InferenceSession(folder / f"{kind}.onnx", providers=["CPUExecutionProvider"])
        found[kind] = lambda x, session=session: session.run(None, {"x": np.float32(x)})[0]
    return found


def two_best(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits, of each row, the first of equals first."""
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :2]
    return order, np.take_along_axis(logits, order, -1)


def made_up(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(V, H)"""
    weight = rng.normal(size=(VOCAB, WIDTH)) * 0.02
    if kind == "one huge value a row":
        weight[np.arange(VOCAB), rng.integers(0, WIDTH, VOCAB)] = 3.0
    elif kind == "rows alike":  # all but two in a hundred differ in the last bits of 16 from another
        weight = weight[rng.integers(0, VOCAB // 50, VOCAB)] * (1 + 2**-9 * rng.normal(size=(VOCAB, 1)))
    elif kind == "rows of nothing":
        weight[::3] = 0
    elif kind == "tiny":
        weight *= 1e-6
    return weight.astype(np.float32)


@pytest.mark.parametrize("kind", ["even", "one huge value a row", "rows alike", "rows of nothing", "tiny"])
def test_the_two_best_are_those_of_the_whole_head(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    weight = made_up(kind, rng)
    run = heads(tmp_path, weight)
    outliers = np.where(rng.random(WIDTH) < 0.03, 60.0, 1.0)  # as the last norm of language models gives them
    for x in (
        rng.normal(size=(1, 1, WIDTH)),
        rng.normal(size=(2, 3, WIDTH)),
        rng.normal(size=(1, 40, WIDTH)) * outliers,
        weight[None, ::100] * 50.0,  # towards some tokens
        np.zeros((1, 2, WIDTH)),
    ):
        whole, found, near = (run[kind](x) for kind in ("whole", "shortlist", "near"))
        (tokens, best), (others, least) = two_best(found), two_best(whole)
        # Sums of 96 products in other orders: 1e-6 of what they add up.
        sums = 1e-6 * np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(weight, axis=1).max()
        assert (np.abs(best - least) <= sums).all()
        third = -np.sort(-whole, axis=-1)[..., 2:3]
        below = np.concatenate([least[..., 1:], third], -1)
        clear = least - below > 2 * sums
        assert (tokens == others)[clear].all()
        # and the rest lie as near as is said
        stored = weight.astype(np.float16).astype(np.float64)
        off = np.abs(near - x @ stored.T) / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
        bound = shortlist.error_bound(weight.T)
        assert (off <= bound).all()
        assert (
            np.abs(found - x @ stored.T) <= np.linalg.norm(x, axis=-1, keepdims=True) * bound + sums
        ).all()


def against_the_rounding(weight: np.ndarray, a: int, b: int) -> np.ndarray:
    """x (1, 1, H) for which token a is ahead of b, and b of a in 8 bits."""
    scale = shortlist.scales_of(weight.T).astype(np.float64)[:, None]
    rounded = (shortlist.values_of(weight.T).T.astype(np.float64) - shortlist.MIDDLE) * scale
    true = weight[a].astype(np.float16) - weight[b].astype(np.float16).astype(np.float64)
    near = rounded[a] - rounded[b]
    along = weight[a] / np.linalg.norm(weight[a]) + weight[b] / np.linalg.norm(weight[b])
    turned = true - near * (true @ near / (near @ near)) * 1.0001
    return (along * 5 + turned / np.linalg.norm(turned) * 4)[None, None]


def test_where_8_bits_are_wrong(tmp_path: Path) -> None:
    """Two tokens so alike that their order in 8 bits is the other one."""
    rng = np.random.default_rng(4)
    weight = made_up("even", rng)
    weight[1::2] = weight[::2] * (1 + 2e-3 * rng.normal(size=weight[::2].shape))
    run = heads(tmp_path, weight)
    wrong = 0
    for a in range(0, 200, 2):
        x = against_the_rounding(weight, a, a + 1)
        whole, found, near = (run[kind](x)[0, 0] for kind in ("whole", "shortlist", "near"))
        assert found.argmax() == whole.argmax()
        wrong += near.argmax() != whole.argmax()
    assert wrong > 20  # else this shows nothing


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_what_is_not_finite_stays_in_its_row(tmp_path: Path, value: float, row: int) -> None:
    run = heads(tmp_path, made_up("even", np.random.default_rng(3)))
    x = np.random.default_rng(5).normal(size=(1, 3, WIDTH))
    whole = two_best(run["whole"](x))
    x[0, row, 7] = value
    found = run["shortlist"](x)
    assert not np.isfinite(found[0, row]).any()
    for part, wanted in zip(two_best(found), whole, strict=True):
        np.testing.assert_allclose(np.delete(part, row, 1), np.delete(wanted, row, 1), rtol=1e-5)


# ---- bundles ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's head would not get one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHORTLIST_FROM", 0)
        target = tmp_path_factory.mktemp("shortlist") / "b"
        return export_bundle(TINY, target, precision="int4", settings=Settings(calibrated=False))


def test_which_graph_is_run(bundle: Path, golden_bundle_a: Path) -> None:
    read = Bundle.read(bundle)

    def name(**options: object) -> str:
        return OrtBackend(read, **options).open("language").file.path.name  # type: ignore[arg-type]

    assert name() == "language_shortlist.fp32.onnx"
    assert name(shortlist=False) == name(plain=True) == "language.fp32.onnx"
    assert name(activations="float16") == "language.fp16.onnx"
    assert name(compatible=True) == "language_compat.fp32.onnx"
    assert OrtBackend(Bundle.read(golden_bundle_a)).open("language").file.path.name == "language.fp32.onnx"


def test_answers_are_those_of_the_whole_head(bundle: Path) -> None:
    read = Bundle.read(bundle)
    fast, slow = (open_bundle(read, OrtBackend(read, shortlist=shortlist)) for shortlist in (True, False))
    records = read_records(None)
    assert len(records) >= 10
    for record in records:
        for drafted in (True, False):
            answers = []
            for seg in (fast, slow):
                twin = seg if drafted else pixelrt.recording.plain(seg)
                answers.append(twin.segment(twin.encode(record.image), record.prompt))
            one, other = answers
            assert one.token_ids == other.token_ids and len(one.masks) == len(other.masks)
            for a, b in zip(one.masks, other.masks, strict=True):
                assert (a.mask == b.mask).all()


def test_margins_are_those_of_the_whole_head(bundle: Path, tmp_path: Path) -> None:
    """And a record is run again with the graph that it was made with."""
    read, steps = Bundle.read(bundle), []
    for faster in (True, False):
        seg = open_bundle(read, OrtBackend(read, shortlist=faster))
        file = tmp_path / f"{faster}.npz"
        pixelrt.record(seg, ROOT / "calib_data" / "scene_01.png", "Segment the blue star.", file)
        recording = Recording.read(file)
        steps.append(recording.about["steps"])
        found = [f for f in rerun(read, recording) if f.stage == "language"]
        assert found and max(f.error for f in found) < 1e-5
    assert len(steps[0]) > 5
    for one, other in zip(*steps, strict=True):
        assert one["token"] == other["token"] and abs(one["margin"] - other["margin"]) < 1e-4


def test_which_heads_want_one() -> None:
    config = SimpleNamespace(hidden=1024, vocab=4096)  # 16 MB
    smaller = SimpleNamespace(hidden=1024, vocab=4095)

    def wants(precision: str, config: SimpleNamespace = config, **settings: object) -> bool:
        return plan.wants_shortlist({"language": precision}, Settings(**settings), config)  # type: ignore[arg-type]

    assert all(wants(precision) for precision in ("int8", "int4", "nf4"))
    assert not wants("fp16") and not wants("fp32") and not wants("int4", smaller)
    assert not wants("int4", head="int8")
    assert wants("int4", head="int8", keep=frozenset({"language.lm_head"}))


def test_who_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHORTLIST_FROM", 0)
    for name, precision, settings in (
        ("fp16", "fp16", Settings()),
        ("head", "int4", Settings(calibrated=False, head="int8")),
    ):
        folder = export_bundle(TINY, tmp_path / name, precision=precision, settings=settings)
        assert "language_shortlist" not in json.loads((folder / "manifest.json").read_text())["graphs"]


def shifted(b: Faulty) -> None:
    b.weight("language_shortlist", f"{NEAR}.weight.uint8", lambda w: np.roll(w, 1, axis=1))


def promised_too_much(b: Faulty) -> None:
    b.weight("language_shortlist", f"{NEAR}.bound", lambda e: e / 2)


def other_zero_point(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "const.uint8.128":
                tensor.raw_data = bytes([0])

    b.graph("language_shortlist", edit)


def never_looked_up(b: Faulty) -> None:
    """What 8 bits say is what comes out."""

    def edit(model: onnx.ModelProto) -> None:
        last = next(n for n in model.graph.node if n.op_type == "ScatterElements")
        last.op_type = "Identity"
        del last.input[1:], last.attribute[:]

    b.graph("language_shortlist", edit)


def too_short(b: Faulty) -> None:
    """The threshold is the best alone, and above it."""

    def edit(model: onnx.ModelProto) -> None:
        best = next(n for n in model.graph.node if n.op_type == "Slice" and "TopK" in n.input[0])
        best.op_type = "ReduceMax"
        del best.input[1:], best.attribute[:]
        best.input.append("const.int64.1." + np.array([-1]).tobytes().hex())
        best.attribute.append(helper.make_attribute("keepdims", 1))

    b.graph("language_shortlist", edit)


def test_verify_reads_it(bundle: Path, tmp_path: Path) -> None:
    original, records = open_original(TINY), read_records(None)[3:4]
    report = verify_bundle(bundle, original, records)
    assert report.passed, report.sentence()
    found = [f.where for f in report.outcome.findings if "shortlist" in f.where or NEAR in f.where]
    assert len(found) >= 5
    for fault, place in (
        (shifted, NEAR),
        (promised_too_much, f"{NEAR}.bound"),
        (other_zero_point, "of the graph with a shortlist"),
        (never_looked_up, "the two best in one pass of the graph with a shortlist"),
        (too_short, "the two best in one pass of the graph with a shortlist"),
    ):
        faulty = Faulty(bundle, tmp_path / fault.__name__)
        fault(faulty)
        report = verify_bundle(faulty.sealed(), original, records)
        first = report.faults[0]
        assert not report.passed and first.stage == "language" and place in first.where, report.sentence()
