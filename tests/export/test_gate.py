"""The gate of an export: what is blessed, what is refused, and which layers are named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt_export import cli, gate
from pixelrt_export.gate import Refused, export_gated, fewest, worst_first
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.check import Outcome
from pixelrt_export.verify.comparison import Finding, cosine, iou, relative_error
from pixelrt_export.verify.original import Judged
from pixelrt_export.verify.report import FILES, Report, Thresholds

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"
LAYERS = ["language.layers.0", "language.layers.1", "language.layers.2", "language.layers.3"]
PRECISION = {"encoder": "fp16", "language": "int4", "pixel_decoder": "fp16"}


def report(iou: float, same: bool = True, findings: tuple[Finding, ...] = ()) -> Report:
    """Layers 2, 0, 3, 1 are the worst, in this order."""
    drift = zip(LAYERS, (0.1, 0.02, 0.2, 0.05), strict=True)
    found = [Finding("language", place, error, 1.0, 0.3, 0) for place, error in drift]
    return Report(Outcome([*found, *findings], [Judged(same, [iou])]), Thresholds(), PRECISION)


class Verifier:
    """Says of a bundle that its masks are good once these layers are kept."""

    def __init__(self, needed: set[str]) -> None:
        self.needed, self.asked = needed, []

    def __call__(self, folder: Path, *_: object) -> Report:
        kept = set(json.loads((folder / "manifest.json").read_text())["quantization"].get("kept", ()))
        self.asked.append(kept)
        return report(1.0 if self.needed <= kept else 0.9)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(gate, "open_original", lambda checkpoint, vision_tower: SimpleNamespace(typed=False))
    yield monkeypatch


def exported(bundle: Path, auto: bool = False) -> tuple[Path, Report]:
    return export_gated(
        TINY,
        bundle,
        precision="int4",
        stages={},
        vision_tower=None,
        settings=Settings(calibrated=False),
        thresholds=Thresholds(),
        auto=auto,
        note=lambda text: None,
    )


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_bundle_that_passes_is_blessed(stub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub.setattr(gate, "verify_bundle", Verifier(set()))
    path, _ = exported(tmp_path / "b")
    manifest = Bundle.read(path).manifest
    assert manifest["verified"]["passed"] and set(FILES) <= set(manifest["files"])
    assert left_in(tmp_path) == {"b"}


def test_a_bundle_that_does_not_pass_is_named_so(stub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The old bundle stays; the refused one lies whole beside it; the fewest worst layers are named."""
    stub.setattr(gate, "verify_bundle", Verifier(set()))
    exported(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    stub.setattr(gate, "verify_bundle", verifier := Verifier({LAYERS[0], LAYERS[3]}))
    with pytest.raises(
        Refused, match=r"layers\.2, language\.layers\.0, language\.layers\.3 in 16 bits: --auto"
    ):
        exported(tmp_path / "b")
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert left_in(tmp_path) == {"b", "b.rejected"}
    refused = Bundle.read(tmp_path / "b.rejected").manifest
    assert not refused["verified"]["passed"] and "kept" not in refused["quantization"]
    assert [len(kept) for kept in verifier.asked] == [0, 1, 2, 4, 3]


def test_auto_keeps_them(stub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub.setattr(gate, "verify_bundle", Verifier({LAYERS[0]}))
    path, _ = exported(tmp_path / "b", auto=True)
    manifest = Bundle.read(path).manifest
    assert manifest["quantization"]["kept"] == [LAYERS[0], LAYERS[2]] and manifest["verified"]["passed"]
    assert left_in(tmp_path) == {"b"}


def test_rounding_is_not_always_the_reason(stub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub.setattr(gate, "verify_bundle", Verifier({"encoder"}))
    with pytest.raises(Refused, match="Rounding is not the reason"):
        exported(tmp_path / "b", auto=True)
    assert left_in(tmp_path) == {"b.rejected"}


def test_a_folder_of_that_name_is_not_overwritten(stub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub.setattr(gate, "verify_bundle", Verifier({"encoder"}))
    (tmp_path / "b.rejected").mkdir()
    (tmp_path / "b.rejected" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="does not overwrite"):
        exported(tmp_path / "b")
    assert left_in(tmp_path) == {"b.rejected"}


@pytest.mark.parametrize("most", [1, 2, 5, 32])
def test_fewest(most: int) -> None:
    for needed in range(1, most + 1):
        tried: list[int] = []

        def passes(count: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= needed

        assert fewest(most, passes) == needed
        assert len(tried) <= 2 * np.ceil(np.log2(most + 1)) + 1 and max(tried) <= most
    assert fewest(most, lambda n: False) is None


def test_worst_first_looks_at_rounded_stages() -> None:
    encoder = Finding("encoder", "clip.layers.0", 0.9, 1.0, 1.0, 0)
    assert worst_first(report(0.9, findings=(encoder,))) == [LAYERS[i] for i in (2, 0, 3, 1)]


def test_verdicts() -> None:
    assert report(0.99).passed and not report(0.97).passed and not report(0.99, same=False).passed
    assert "mean IoU 0.9700" in report(0.97).sentence() and "wanted" in report(0.97).sentence()
    first = Finding("encoder", "level0", 0.5, 0.9, 0.1, 3)
    later = Finding("masks", "pixels", np.inf, 1.0, 0.1, 3)
    faulty = report(0.99, findings=(later, first))
    assert not faulty.passed and faulty.faults == [first, later]
    assert faulty.sentence().startswith("fault in encoder: level0 is off by 0.5, where 0.1 can be explained")
    assert json.loads(json.dumps(faulty.to_json(), allow_nan=False))["faults"][1]["error"] is None
    nothing = Report(Outcome([], [Judged(True, [])]), Thresholds(), PRECISION)
    assert nothing.passed and nothing.iou == 1


def test_report_files(tmp_path: Path) -> None:
    names = report(0.97).write(tmp_path)
    assert left_in(tmp_path) == set(names) == set(FILES)
    assert "**Failed**" in (tmp_path / "report.md").read_text()
    drawn = ElementTree.parse(tmp_path / "drift.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}path")) == len(LAYERS)


def test_measures() -> None:
    a = np.array([3.0, 4.0])
    assert relative_error(a, a) == 0 and relative_error(a * 1.1, a) == pytest.approx(0.1)
    assert relative_error(a, np.ones(3)) == np.inf and relative_error(a * np.nan, a) == np.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == 0 and relative_error(a, np.zeros(2)) == np.inf
    assert cosine(a, -a) == pytest.approx(-1) and cosine(a, np.ones(3)) == 0
    assert iou(a > 3, a > 0) == 0.5 and iou(a > 9, a > 9) == 1 and iou(a > 9, np.ones(3, bool)) == 0


def test_commands(tmp_path: Path) -> None:
    """From checkpoint to a blessed bundle, and the same check by hand."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(ROOT / "calib_data" / "scene_01.png", pictures)
    row = {"image": "scene_01.png", "prompt": "Segment the red circle and the blue star."}
    (pictures / "prompts.jsonl").write_text(json.dumps(row))
    bundle, run = tmp_path / "b", CliRunner().invoke
    done = run(cli.export, [str(TINY), str(bundle), "--precision", "int8", "--calib", str(pictures)])
    assert done.exit_code == 0 and "verified: 100.0% of 1 questions" in done.output, done.output
    assert Bundle.read(bundle).manifest["verified"]["mask_iou"] > 0.98
    check = [str(bundle), str(TINY), "--images", str(pictures)]
    done = run(cli.verify, [*check, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "passed:" in done.output and left_in(tmp_path / "out") == set(FILES), (
        done.output
    )
    done = run(cli.verify, [*check, "--min-iou", "1"])
    assert done.exit_code == 1 and "failed: too far from the original" in done.output


def test_psalm_is_asked_in_its_own_ways(tmp_path: Path) -> None:
    """The shipped PSALM in four bits is blessed on a sentence, classes, points and boxes."""
    from pixelrt_export.tiny.samples import write_samples

    pictures = tmp_path / "pictures"
    write_samples(pictures)
    lines = (pictures / "prompts.jsonl").read_text().splitlines()
    chosen = [json.loads(lines[i]) for i in (0, 1, 3, 5)]
    (pictures / "prompts.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    arguments = [
        str(ROOT / "checkpoints" / "psalm-tiny"),
        str(tmp_path / "b"),
        "--precision",
        "int4",
        "--calib",
        str(pictures),
    ]
    done = CliRunner().invoke(cli.export, arguments)
    assert done.exit_code == 0 and "verified: 100.0% of 4 questions" in done.output, done.output
    masks = re.search(r"of (\d+) masks", done.output)
    assert masks is not None and int(masks[1]) > 10  # one a sentence, but one for each segment, point and box


def test_a_bundle_of_another_family(golden_psalm_bundle: Path) -> None:
    with pytest.raises(InputError, match="is of family psalm, its checkpoint of pixellm"):
        verify_bundle(golden_psalm_bundle, open_original(TINY), [])


def test_many_pictures_are_compared_in_groups(monkeypatch: pytest.MonkeyPatch, golden_bundle_a: Path) -> None:
    """Questions are numbered through, and each group is judged."""
    from pixelrt_export.verify import bundle as module

    def group(read: Bundle, original: object, progress: object, first: int, *rest: object):
        return lambda records: Outcome(
            [Finding("masks", "pixels", 0.0, 1.0, 1.0, first + i) for i in range(len(records))],
            [Judged(True, [1.0]) for _ in records],
        )

    monkeypatch.setattr(module, "Check", group)
    monkeypatch.setattr(module, "compare_stored", lambda *_: [])
    monkeypatch.setattr(module, "TOGETHER", 2)
    original = SimpleNamespace(family="pixellm", checkpoint=None, vision_tower=None)
    found = verify_bundle(golden_bundle_a, original, [None] * 5)
    assert [finding.question for finding in found.outcome.findings] == [0, 1, 2, 3, 4] and found.same == 1


def test_an_answer_is_the_original_s_if_each_word_is_its_choice() -> None:
    """Logits of a codebook row of the prompt come first and decide nothing."""
    from pixelrt_export.verify.original import Said
    from pixelrt_export.verify.pixellm import PixelLMOriginal

    logits = np.zeros((1, 3, 5), np.float32)
    logits[0, [0, 1, 2], [4, 3, 1]] = 1
    for words, same in (([3, 1], True), ([3, 2], False), ([4, 1], False), ([4, 3, 1], True)):
        said = Said(words, [])
        assert PixelLMOriginal.agrees(None, None, said, {"logits": logits}, None, None) is same  # type: ignore
