"""`pixelrt eval`: the shipped models over miniature datasets, and their scores computed a second time by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from pixelrt.cli import main
from pixelrt.evaluation import session
from pixelrt.evaluation.annotations import read_labels, read_mask
from pixelrt.evaluation.benchmark import Options
from pixelrt.queries import Classes, Refer

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")

from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.scenes import scene

from tests.evaluation import miniature as mini
from tests.evaluation.test_measures import counts_by_the_text

COUNT = 2  # pictures
FEW = 3  # references


def pictures(long_side: int) -> list[mini.Picture]:
    seeds = range(900_000_000, 900_000_000 + COUNT)
    drawn = [scene(seed, long_side) for seed in seeds]
    return [mini.Picture(s.image, s.labels, {t.label: t.name for t in s.things}) for s in drawn]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)], prog_name="pixelrt")


def scored(folder: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    """The document and all that was printed; what was answered is kept in `folder`."""
    folder.mkdir(exist_ok=True)
    done = run(*arguments, "--out", folder / "kept", "--json", folder / "scores.json")
    assert done.exit_code == 0, done.output
    return json.loads((folder / "scores.json").read_text()), done.output


def checked_by_hand(segmenter: Any, folder: Path, ask: Any) -> dict[str, float]:
    """cIoU and gIoU of the first references; ask: reference -> one query a mask."""
    pairs = []
    for ref in session.open_benchmark("refcoco", folder, Options()).items[:FEW]:
        truth, frame = read_mask(ref.segmentation, ref.size, "x"), segmenter.encode(str(ref.picture))
        for query in ask(ref):
            drawn = np.zeros(ref.size, bool)
            for mask in segmenter.segment(frame, query).masks:
                drawn |= mask.mask
            pairs.append(((drawn & truth).sum(), (drawn | truth).sum()))
    both, either = np.array(pairs).T
    return {"cIoU": both.sum() / either.sum(), "gIoU": (both / either).mean()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def refcoco(root: Path) -> Path:
    return mini.write_refcoco(root / "refer", pictures(140), "refcoco")


@pytest.fixture(scope="module")
def muse(root: Path) -> Path:
    """One thing, then two, of each picture."""
    drawn, asked = pictures(140), []
    for picture in drawn:
        labels = sorted(picture.names)[:2]
        one, two = (picture.names[k] for k in labels)
        asked.append([(f"Segment the {one}.", labels[:1]), (f"Segment the {one} and the {two}.", labels)])
    return mini.write_muse(root / "muse", drawn, asked)


@pytest.fixture(scope="module")
def coco(root: Path, class_names: list[str]) -> Path:
    return mini.write_coco(root / "coco", pictures(160), class_names)


@pytest.fixture(scope="module")
def davis(root: Path) -> Path:
    frames = clip(900_000_000, 160, frames=4).frames
    known = np.unique(frames[0].labels)  # DAVIS has no objects that come later
    shown = [mini.Picture(f.image, np.where(np.isin(f.labels, known), f.labels, 0), {}) for f in frames]
    return mini.write_davis(root / "davis", {"film": shown})


def test_pixellm(tiny_bundle: Path, refcoco: Path, muse: Path, tmp_path: Path) -> None:
    asked = (tiny_bundle, "--dataset", "refcoco", refcoco, "--limit", FEW)
    given, text = scored(tmp_path / "given", *asked, "--markdown", tmp_path / "t.md")
    row = given["bundles"][0]
    assert row["family"] == "pixellm" and row["items"] == FEW < given["items_of_the_split"]
    assert re.search(r"cIoU +[\d.]+ +73\.0\n", text) and "Theirs, not measured here" in text
    assert f"| cIoU | {100 * row['scores']['cIoU']:.2f} | 73.0 |" in (tmp_path / "t.md").read_text()
    # Words that the model was trained with: its answer given or its own, and the runtime asked the same.
    known = ("--question", "Segment {sent}.")
    given, _ = scored(tmp_path / "known", *asked, *known)
    free, _ = scored(tmp_path / "free", *asked, *known, "--generate")
    scores = free["bundles"][0]["scores"]
    assert given["bundles"][0]["scores"]["gIoU"] > 0.6 and scores["gIoU"] > 0.6
    by_hand = checked_by_hand(
        pixelrt.load(tiny_bundle), refcoco, lambda ref: [f"Segment {text.lower()}." for text in ref.sentences]
    )
    assert scores == pytest.approx(by_hand, abs=1e-9)
    found, _ = scored(tmp_path / "muse", tiny_bundle, "--dataset", "muse", muse, "--question", "{sent}")
    assert found["bundles"][0]["scores"]["gIoU"] > 0.6 and found["published_by_the_papers"] == []


def test_psalm_on_refcoco(psalm_bundle: Path, refcoco: Path, tmp_path: Path) -> None:
    got, _ = scored(tmp_path, psalm_bundle, "--dataset", "refcoco", refcoco, "--limit", FEW)
    by_hand = checked_by_hand(pixelrt.load(psalm_bundle), refcoco, lambda ref: [Refer(ref.sentences)])
    assert got["bundles"][0]["scores"] == pytest.approx(by_hand, abs=1e-9)


def test_psalm_on_coco(psalm_bundle: Path, coco: Path, class_names: list[str], tmp_path: Path) -> None:
    got, _ = scored(tmp_path, psalm_bundle, "--dataset", "coco-panoptic", coco)
    scores = got["bundles"][0]["scores"]
    assert scores["PQ stuff"] is None and scores["mIoU"] > 0.85
    seg, total = pixelrt.load(psalm_bundle), np.zeros((len(class_names), 4))
    for item in session.open_benchmark("coco-panoptic", coco, Options()).items:
        truth = read_labels(item.label_map, item.size, "x")
        answer = seg.segment(str(item.picture), Classes(class_names))
        found = {segment.id: segment.category for segment in answer.segments}
        total += counts_by_the_text(truth, item.segments, set(), answer.label_map, found, len(class_names))
    total = total[total[:, 1:].any(1)]
    by_hand = (total[:, 0] / (total[:, 1] + total[:, 2:].sum(1) / 2)).mean()
    assert scores["PQ"] == pytest.approx(by_hand, abs=1e-9) and by_hand > 0.85
    objects, _ = scored(tmp_path, psalm_bundle, "--dataset", "coco-instance", coco, "--limit", 1)
    assert objects["bundles"][0]["scores"]["AP50"] > 0.7


def test_psalm_on_davis(psalm_bundle: Path, davis: Path, tmp_path: Path) -> None:
    for way in ((), ("--blind",)):
        got, _ = scored(tmp_path / f"{len(way)}", psalm_bundle, "--dataset", "davis", davis, *way)
        scores = got["bundles"][0]["scores"]
        assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2) and 0.1 < scores["J"] < 1


def test_two_columns_and_going_on(
    psalm_bundle: Path, tiny_bundle: Path, refcoco: Path, tmp_path: Path
) -> None:
    both = (psalm_bundle, tiny_bundle, "--dataset", "refcoco", refcoco, "--limit")
    first, text = scored(tmp_path / "a", *both, 2)
    assert [b["items"] for b in first["bundles"]] == [2, 2] and "Not the whole split: 2 of" in text
    kept = sorted((tmp_path / "a" / "kept").iterdir())
    assert [file.name.partition("-tiny")[0] for file in kept] == ["pixellm", "psalm"]
    kept[0].write_bytes(kept[0].read_bytes()[:-7])  # killed while it wrote
    again, text = scored(tmp_path / "a", *both, FEW)
    assert "pixellm-tiny: 1 of 3 references are in" in text and "psalm-tiny: 2 of 3 references are in" in text
    fresh, _ = scored(tmp_path / "b", *both, FEW)
    assert again == fresh
    third, text = scored(tmp_path / "a", *both, FEW)
    assert third == again and "ETA" not in text


def test_refusals(
    tiny_bundle: Path, psalm_bundle: Path, coco: Path, muse: Path, refcoco: Path, tmp_path: Path
) -> None:
    for arguments, sentence in (
        (
            (tiny_bundle, "--dataset", "coco-panoptic", coco),
            "'pixellm', which is not evaluated on coco-panoptic",
        ),
        ((psalm_bundle, "--dataset", "muse", muse), "'psalm', which is not evaluated on muse; pixellm is"),
        ((tiny_bundle, "--dataset", "davis", coco), "val.txt is missing"),
        ((tmp_path, "--dataset", "muse", muse), "is not a bundle"),
        (
            (tiny_bundle, "--dataset", "refcoco", refcoco, "--json", tmp_path / "no" / "f"),
            "cannot be written",
        ),
        ((tiny_bundle, "--dataset", "refcoco", refcoco, "--images", tmp_path), "is not there. Download it"),
    ):
        done = run(*arguments, "--out", tmp_path / "out")
        assert done.exit_code == 2 and sentence in done.output and done.output.count("\n") == 1
    assert run(tiny_bundle, "--dataset", "imagenet", coco).exit_code == 2


@pytest.mark.parametrize("name", ["pycocotools", "scipy.optimize"])
def test_without_the_extra(
    name: str, tiny_bundle: Path, muse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    done = run(tiny_bundle, "--dataset", "muse", muse, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "pip install 'pixelrt[eval]'" in done.output
