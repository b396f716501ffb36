"""A recorded answer that is wrong: whose doing, and at which stage. Faults are made, none is known to `replay`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults_of_language
import faults_of_vision
import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner
from faulty import Faulty, insert
from pixelrt import batch
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.families import pixellm_masks, psalm
from pixelrt.generate import Generation
from pixelrt.recording import Recording
from pixelrt_export import cli
from pixelrt_export.export import export_bundle
from pixelrt_export.verify.bundle import open_original
from pixelrt_export.verify.check import Outcome
from pixelrt_export.verify.comparison import Finding
from pixelrt_export.verify.original import Judged, Original, Otherwise
from pixelrt_export.verify.replay import Replay, replay
from pixelrt_export.verify.report import Report, Thresholds
from pixelrt_export.verify.rerun import rerun

ROOT = Path(__file__).resolve().parents[2]
TINY, SCENE = ROOT / "checkpoints" / "pixellm-tiny", ROOT / "calib_data" / "scene_01.png"
QUESTION = "Segment the red circle and the blue star."


@pytest.fixture(scope="module")
def bundles(golden_psalm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("torch", reason="needs the export extra")
    tiny = export_bundle(TINY, tmp_path_factory.mktemp("bundles") / "fp32", precision="fp32")
    return {"pixellm": tiny, "psalm": golden_psalm_bundle}


@pytest.fixture(scope="module")
def originals(golden_psalm_checkpoint: Path) -> dict[str, Original]:
    return {"pixellm": open_original(TINY), "psalm": open_original(golden_psalm_checkpoint)}


@pytest.fixture(scope="module")
def segmenters(bundles: dict[str, Path]) -> dict[str, Any]:
    return {family: pixelrt.load(bundle) for family, bundle in bundles.items()}


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Recording]:
    def record(segmenter: Any, query: Any = QUESTION) -> Recording:
        pixelrt.record(segmenter, SCENE, query, tmp_path / "r.npz")
        return Recording.read(tmp_path / "r.npz")

    return record


# ---- nothing diverges -----------------------------------------------------------------------------------

CLASSES = pixelrt.Classes(["star", "circle"], "panoptic", ["star"])
OTHERS: list[Any] = [
    "the blue star",
    pixelrt.Classes(["star", "circle"], "instance", min_score=0.1),
    pixelrt.Classes(["star", "circle"], "semantic"),
    pixelrt.Regions(points=[(72, 190)], boxes=[(181, 46, 270, 138)]),
]


@pytest.mark.parametrize(("family", "query"), [("pixellm", QUESTION), ("psalm", CLASSES)])
def test_the_model_itself(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    segmenters: dict[str, Any],
    recorded: Callable[..., Recording],
    family: str,
    query: Any,
) -> None:
    found = replay(Bundle.read(bundles[family]), originals[family], recorded(segmenters[family], query))
    assert found.same_bundle and found.fault == ("model", None), found.sentence()
    assert found.sentence().startswith("model: no stage diverges") and found.report.iou > 0.9999
    for finding in (*found.machine, *found.report.outcome.findings):
        assert finding.error <= finding.limit * 2 / 3
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["fault"] == "model" and document["same_bundle"] and document["first"] is None


@pytest.mark.parametrize("query", OTHERS, ids=lambda query: str(query)[:40])
def test_with_another_bundle_at_hand(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    segmenters: dict[str, Any],
    recorded: Callable[..., Recording],
    query: Any,
) -> None:
    bundle = replace(Bundle.read(bundles["psalm"]), sha256="cd" * 32)
    found = replay(bundle, originals["psalm"], recorded(segmenters["psalm"], query))
    assert not found.same_bundle and found.machine == [] and found.fault == ("model", None), found.sentence()
    assert "recorded with another bundle" in str(found.other_bundle()) and found.report.iou > 0.9999


def test_through_the_compatibility_twin(
    bundles: dict[str, Path], originals: dict[str, Original], recorded: Callable[..., Recording]
) -> None:
    """A robot with an old ONNX Runtime: the graph that it ran is the one that is run again."""
    from pixelrt.engine_ort import OrtBackend
    from pixelrt.segmenter import open_bundle

    bundle = Bundle.read(bundles["pixellm"])
    recording = recorded(open_bundle(bundle, OrtBackend(bundle, compatible=True)))
    assert recording.about["graphs"]["language"]["cache"] == "concat"
    assert all(finding.error < 1e-5 for finding in rerun(bundle, recording))


def test_a_backend_that_reads_in_other_passes(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    segmenters: dict[str, Any],
    recorded: Callable[..., Recording],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Engines take only so many rows at once; that is no difference."""
    with monkeypatch.context() as patch:
        patch.setattr(psalm, "ROWS_MAX", 40)
        recording = recorded(segmenters["psalm"], CLASSES)
    assert len(recording.calls["language"]) > 1
    bundle = Bundle.read(bundles["psalm"])
    assert all(finding.passed for finding in rerun(bundle, recording))
    other = replay(replace(bundle, sha256="cd" * 32), originals["psalm"], recording)
    assert other.fault == ("model", None), other.sentence()


# ---- the bundle's doing ---------------------------------------------------------------------------------

BUNDLE_FAULTS: list[tuple[str, Callable[[Faulty], None], str]] = [
    ("pixellm", faults_of_vision.other_mean, "picture"),
    ("pixellm", faults_of_language.other_template, "tokens"),
    ("pixellm", faults_of_vision.levels_swapped, "pixel_decoder"),
    ("psalm", faults_of_vision.projector_convolution_once, "encoder"),
    ("psalm", faults_of_language.projectors_in_another_order, "language"),
]


@pytest.mark.parametrize(
    ("family", "fault", "stage"), BUNDLE_FAULTS, ids=[f"{f[0]}-{f[1].__name__}" for f in BUNDLE_FAULTS]
)
def test_a_fault_of_the_bundle(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    recorded: Callable[..., Recording],
    tmp_path: Path,
    family: str,
    fault: Callable[[Faulty], None],
    stage: str,
) -> None:
    """At its stage. With the sound bundle at hand the machine cannot be ruled out; with the recorded one it is."""
    faulty = Faulty(bundles[family], tmp_path / "b")
    fault(faulty)
    folder = faulty.sealed()
    recording = recorded(pixelrt.load(folder), QUESTION if family == "pixellm" else "the blue star")
    found = replay(Bundle.read(bundles[family]), originals[family], recording)
    whose, first = found.fault
    assert (whose, first and first.stage) == ("machine or bundle", stage), found.sentence()
    assert recording.about["bundle"]["sha256"] in found.sentence()
    if stage == "pixel_decoder":
        found = replay(Bundle.read(folder), originals[family], recording)
        whose, first = found.fault
        assert (whose, first and first.stage) == ("bundle", stage), found.sentence()
        assert all(finding.passed for finding in found.machine)
        assert f"bundle: in {stage}, " in found.sentence() and "Export it again" in found.sentence()


# ---- the machine's doing --------------------------------------------------------------------------------


class Failing:
    """A graph whose output `name` is 2 % too large in one run."""

    def __init__(self, engine: Any, name: str, run: int) -> None:
        self.engine, self.file, self.memory = engine, engine.file, engine.memory
        self.name, self.run, self.done = name, run, 0

    def __call__(self, inputs: Any, into: Any = None) -> dict[str, Any]:
        outputs = self.engine(inputs, into)
        self.done += 1
        return {**outputs, self.name: outputs[self.name] * 1.02} if self.done == self.run else outputs


def graph(name: str, output: str, run: int = 1) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def spoil(segmenter: Any, patch: pytest.MonkeyPatch) -> None:
        setattr(segmenter, f"_{name}", Failing(getattr(segmenter, f"_{name}"), output, run))

    return spoil


def brighter(segmenter: Any, patch: pytest.MonkeyPatch) -> None:
    prepare = batch.prepare

    def spoiled(image: Any, spec: Any) -> Any:
        prepared = prepare(image, spec)
        return replace(prepared, pixels=prepared.pixels + np.float32(0.01))

    patch.setattr(batch, "prepare", spoiled)


def another_row(segmenter: Any, patch: pytest.MonkeyPatch) -> None:
    table, sure = segmenter.table, segmenter.prompt.tokenizer.token_to_id("▁Sure")
    segmenter.table = lambda ids: table([int(i) + (int(i) == sure) for i in ids])


def targets_exchanged(segmenter: Any, patch: pytest.MonkeyPatch) -> None:
    targets = Generation.targets
    patch.setattr(Generation, "targets", lambda self, codebook: targets(self, codebook)[::-1].copy())


def masks_moved(segmenter: Any, patch: pytest.MonkeyPatch) -> None:
    upsample = pixellm_masks.upsample_mask

    def spoiled(*arguments: Any) -> Any:
        masks, scores, boxes = upsample(*arguments)
        return np.roll(masks, 2, axis=2), scores, boxes

    patch.setattr(pixellm_masks, "upsample_mask", spoiled)


MACHINE_FAULTS: list[tuple[str, Callable[[Any, pytest.MonkeyPatch], None], str, str]] = [
    ("pixellm", brighter, "picture", "pixels"),
    ("pixellm", graph("encoder", "level1"), "encoder", "level1"),
    ("pixellm", another_row, "tokens", "embeddings at position {first}"),
    ("pixellm", graph("language", "hidden", 3), "language", "hidden, token 3"),
    ("pixellm", targets_exchanged, "targets", "seg_hidden"),
    ("pixellm", graph("pixel_decoder", "low_res_masks"), "pixel_decoder", "low_res_masks"),
    ("pixellm", masks_moved, "masks", "pixels of mask 1"),
    ("psalm", graph("language", "queries"), "language", "queries, row 0"),
]


@pytest.mark.parametrize(
    ("family", "spoil", "stage", "where"), MACHINE_FAULTS, ids=[f"{f[0]}-{f[2]}" for f in MACHINE_FAULTS]
)
def test_a_fault_of_the_machine(
    bundles: dict[str, Path],
    segmenters: dict[str, Any],
    recorded: Callable[..., Recording],
    family: str,
    spoil: Callable[[Any, pytest.MonkeyPatch], None],
    stage: str,
    where: str,
) -> None:
    segmenter = copy.copy(segmenters[family])
    with pytest.MonkeyPatch.context() as patch:
        spoil(segmenter, patch)
        recording = recorded(segmenter, QUESTION if family == "pixellm" else "the blue star")
    bundle = Bundle.read(bundles[family])
    machine = rerun(bundle, recording)
    found = Replay(recording, bundle, machine, nothing_wrong())
    whose, first = found.fault
    assert first is not None and (whose, first.stage) == ("machine", stage), found.sentence()
    # Of the answer, counted from one; the picture, one id of the prompt, is 49 tokens.
    answer = len(segmenter.check(QUESTION)) + 49 if family == "pixellm" else 0
    assert first.where == where.format(first=answer)
    assert "Look at what recorded it: onnxruntime-cpu on " in found.sentence()
    faults = {finding.stage for finding in machine if not finding.passed}
    assert faults == {stage}  # all else is as it should be, given what it was given


def test_what_comes_of_a_machines_fault_is_not_taken_for_the_bundles(
    bundles: dict[str, Path], originals: dict[str, Original], healthy: Recording
) -> None:
    spoiled = copy.deepcopy(healthy)
    spoiled.calls["language"][2].outputs["logits"] *= 1.02
    whose, first = replay(Bundle.read(bundles["pixellm"]), originals["pixellm"], spoiled).fault
    assert first is not None and (whose, first.where) == ("machine", "logits, token 3")


def nothing_wrong(judged: Judged | None = None, iou: float = 1.0) -> Report:
    precision = dict.fromkeys(("encoder", "language", "pixel_decoder"), "int4")
    return Report(Outcome([], [judged or Judged(True, [iou])]), Thresholds(), precision)


# ---- what it says ---------------------------------------------------------------------------------------


@pytest.fixture
def healthy(segmenters: dict[str, Any], recorded: Callable[..., Recording]) -> Iterator[Recording]:
    yield recorded(segmenters["pixellm"])


def test_rounding_and_runs_that_were_completed(bundles: dict[str, Path], healthy: Recording) -> None:
    bundle = Bundle.read(bundles["pixellm"])
    words = healthy.token_ids
    other = Judged(False, [0.99], [Otherwise(4, words[3], words[4], 0.125)])
    found = Replay(healthy, bundle, [], nothing_wrong(other))
    assert found.fault == ("precision", None)
    margin = healthy.about["steps"][3]["margin"]
    assert (
        f", {margin:.3g} ahead there; the checkpoint says '" in found.sentence()
        and "token 4 is '" in found.sentence()
    )
    assert "0.125 ahead. Export with more bits" in found.sentence()
    assert Replay(healthy, bundle, [], nothing_wrong(iou=0.9)).fault == ("precision", None)
    # A token that the recorded model did not choose either is no difference.
    healthy.about["steps"][3]["best"] += 1
    assert Replay(healthy, bundle, [], nothing_wrong(other)).fault == ("model", None)


def test_the_program(
    bundles: dict[str, Path], healthy: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints and gives back, for a bundle that is another one and for one that is faulty."""
    from pixelrt_export.verify import replay as module

    run, out = CliRunner().invoke, tmp_path / "out"
    check = [str(bundles["pixellm"]), str(TINY), "--replay", str(tmp_path / "r.npz")]
    found = Replay(healthy, Bundle.read(bundles["pixellm"]), [], nothing_wrong())
    monkeypatch.setattr(module, "replay", lambda *_: found)
    done = run(cli.verify, [*check, "--out", str(out)])
    assert done.exit_code == 0 and "\nmodel: no stage diverges" in done.output, done.output
    assert json.loads((out / "replay.json").read_text())["verdict"] == found.sentence()
    wrong = [Finding("masks", "pixels of mask 1", 0.5, 1.0, 0.002, -1)]
    found = replace(found, machine=wrong)
    done = run(cli.verify, check)
    assert done.exit_code == 1 and "\nmachine: in masks, pixels of mask 1 is off by 0.5" in done.output
    found = replace(found, bundle=replace(found.bundle, sha256="cd" * 32), machine=[])
    done = run(cli.verify, check)
    assert done.exit_code == 0 and done.output.startswith("recorded with another bundle"), done.output
    done = run(cli.verify, [*check, "--images", str(tmp_path)])
    assert isinstance(done.exception, InputError) and "brings its own picture" in str(done.exception)


def test_the_program_says_no(bundles: dict[str, Path], tmp_path: Path) -> None:
    """As the whole program: one sentence and 2; and 1 where something is wrong."""
    from pixelrt.cli import main

    (tmp_path / "r.npz").write_bytes(b"PK\5\6 nothing")
    line = ["verify", str(bundles["pixellm"]), str(TINY), "--replay", str(tmp_path / "r.npz")]
    done = CliRunner().invoke(main, line)
    assert (
        done.exit_code == 2 and "is no recording of pixelrt" in done.output and done.output.count("\n") == 1
    )


def test_recordings_of_another_model(
    bundles: dict[str, Path], originals: dict[str, Original], healthy: Recording, golden_bundle_a: Path
) -> None:
    """Of the family, but of other sizes; and one whose tensors do not fit one another."""
    with pytest.raises(InputError, match="the recording's pixels of encoder has shape"):
        replay(Bundle.read(golden_bundle_a), originals["pixellm"], healthy)
    with pytest.raises(InputError, match="the recording is of family pixellm"):
        replay(Bundle.read(bundles["psalm"]), originals["psalm"], healthy)
    bundle = Bundle.read(bundles["pixellm"])

    def refused(graph: str, side: str, name: str, change: Callable[[Any], Any], sentence: str) -> None:
        spoiled = copy.deepcopy(healthy)
        tensors = getattr(spoiled.calls[graph][-1], side)
        tensors[name] = change(tensors[name])
        with pytest.raises(InputError, match=sentence):
            replay(bundle, originals["pixellm"], spoiled)

    refused("language", "inputs", "logit_rows", lambda rows: rows + 99, "do not follow one another")
    refused("language", "inputs", "attn_mask", lambda mask: mask[..., :-1], "do not follow one another")
    refused(
        "language", "inputs", "position_ids", lambda ids: ids[:, :0], "position_ids of language has shape"
    )
    refused("language", "outputs", "hidden", lambda rows: rows[0], "hidden of language has shape")
    refused("pixel_decoder", "outputs", "low_res_masks", lambda m: m[:1], "low_res_masks of pixel_decoder")
    refused("encoder", "outputs", "level0", lambda m: None, "level0 of encoder has shape None")


def test_two_questions_at_once_are_compared(
    bundles: dict[str, Path], originals: dict[str, Original], tmp_path: Path
) -> None:
    """`verify`, batch 1 and N: a pixel decoder that is right for up to two targets, as many as this answer has."""
    import onnx
    from onnx import helper, numpy_helper
    from pixelrt_export.quantize.records import Record
    from pixelrt_export.verify.check import Check

    def later_ones_negated(model: onnx.ModelProto) -> None:
        for name, value in (("zero", [0]), ("two", [2]), ("end", [1 << 31])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"late.{name}"))
        users = [n for n in model.graph.node if "seg_hidden" in n.input]
        for n in users:
            n.input[list(n.input).index("seg_hidden")] = "late.all"
        insert(
            model,
            users[0],
            helper.make_node("Slice", ["seg_hidden", "late.zero", "late.two", "late.zero"], ["late.a"]),
            helper.make_node("Slice", ["seg_hidden", "late.two", "late.end", "late.zero"], ["late.b"]),
            helper.make_node("Neg", ["late.b"], ["late.c"]),
            helper.make_node("Concat", ["late.a", "late.c"], ["late.all"], axis=0),
        )

    faulty = Faulty(bundles["pixellm"], tmp_path / "b")
    faulty.graph("pixel_decoder", later_ones_negated)
    outcome = Check(Bundle.read(faulty.sealed()), originals["pixellm"])([Record(SCENE, QUESTION)])
    faults = [finding.where for finding in outcome.findings if not finding.passed]
    assert faults == ["low_res_masks of two questions at once"]
