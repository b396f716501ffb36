"""`pixelrt eval`: the shipped models over miniature datasets, and their scores computed a second time by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from pixelrt.cli import main
from pixelrt.evaluation import session
from pixelrt.queries import Classes, Refer

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")
pytest.importorskip("skimage", reason="needs the train extra")

from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.scenes import scene

from tests.evaluation import miniature as mini

COUNT = 2


def pictures(long_side: int) -> list[mini.Picture]:
    drawn = [scene(seed, long_side) for seed in range(900_000_000, 900_000_000 + COUNT)]
    return [mini.Picture(s.image, s.labels, {t.label: t.name for t in s.things}) for s in drawn]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)], prog_name="pixelrt")


def scored(tmp_path: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "scores.json"
    done = run(*arguments, "--out", tmp_path / "kept", "--json", file)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text()), done.output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def refcoco(root: Path) -> Path:
    return mini.write_refcoco(root / "refer", pictures(140), "refcoco")


@pytest.fixture(scope="module")
def muse(root: Path) -> Path:
    drawn = pictures(140)
    asked = []
    for picture in drawn:
        labels = sorted(picture.names)[:2]
        asked.append([(f"Segment the {picture.names[labels[0]]}.", labels[:1]),
                      ("Segment the " + " and the ".join(picture.names[k] for k in labels) + ".", labels)])  # fmt: skip
    return mini.write_muse(root / "muse", drawn, asked)


@pytest.fixture(scope="module")
def coco(root: Path, class_names: list[str]) -> Path:
    return mini.write_coco(root / "coco", pictures(160), class_names)


@pytest.fixture(scope="module")
def davis(root: Path) -> Path:
    film = clip(900_000_000, 160, frames=5)
    frames = [mini.Picture(f.image, f.labels, {}) for f in film.frames]
    keep = set(np.unique(frames[0].labels).tolist())  # objects that come later are not DAVIS's
    frames = [mini.Picture(f.image, np.where(np.isin(f.labels, list(keep)), f.labels, 0), {}) for f in frames]
    return mini.write_davis(root / "davis", {"film": frames})


def test_pixellm_on_refcoco_and_muse(tiny_bundle: Path, refcoco: Path, muse: Path, tmp_path: Path) -> None:
    given, text = scored(
        tmp_path, tiny_bundle, "--dataset", "refcoco", refcoco, "--markdown", tmp_path / "t.md"
    )
    row = given["bundles"][0]
    assert row["family"] == "pixellm" and row["items"] == given["items_of_the_split"]
    assert (
        re.search(r"cIoU +[\d.]+ +73\.0", text) and "(theirs)" in text and "Theirs, not measured here" in text
    )
    assert f"| cIoU | {100 * row['scores']['cIoU']:.2f} | 73.0 |" in (tmp_path / "t.md").read_text()
    # The model was trained with other words; its own answer to its own words is the measure of the runtime.
    way = ("--generate", "--question", "Segment {sent}.", "--out", tmp_path / "own")
    free = json.loads(run_json(tmp_path, tiny_bundle, "--dataset", "refcoco", refcoco, *way))
    assert free["bundles"][0]["scores"]["gIoU"] > 0.5
    seg, checked = pixelrt.load(tiny_bundle), []
    for ref in session.open_benchmark("refcoco", refcoco, session.Options()).items:
        truth = np.zeros(ref.size, bool)
        from pixelrt.evaluation.annotations import read_mask

        truth = read_mask(ref.segmentation, ref.size, "x")
        for sentence in ref.sentences:
            masks = [m.mask for m in seg.segment(str(ref.picture), f"Segment {sentence}.").masks]
            drawn = np.any(masks, axis=0) if masks else np.zeros(ref.size, bool)
            checked.append((int((drawn & truth).sum()), int((drawn | truth).sum())))
    both, either = np.array(checked).T
    scores = free["bundles"][0]["scores"]
    assert scores["cIoU"] == pytest.approx(both.sum() / either.sum(), abs=1e-9)
    assert scores["gIoU"] == pytest.approx((both / either).mean(), abs=1e-9)
    found, _ = scored(tmp_path, tiny_bundle, "--dataset", "muse", muse, "--question", "{sent}")
    assert found["bundles"][0]["scores"]["gIoU"] > 0.6 and found["published_by_the_papers"] == []


def run_json(tmp_path: Path, *arguments: object) -> str:
    file = tmp_path / "other.json"
    done = run(*arguments, "--json", file)
    assert done.exit_code == 0, done.output
    return file.read_text()


def test_psalm_on_refcoco(psalm_bundle: Path, refcoco: Path, tmp_path: Path) -> None:
    got, _ = scored(tmp_path, psalm_bundle, "--dataset", "refcoco", refcoco)
    seg, pairs = pixelrt.load(psalm_bundle), []
    for ref in session.open_benchmark("refcoco", refcoco, session.Options()).items:
        from pixelrt.evaluation.annotations import read_mask

        truth = read_mask(ref.segmentation, ref.size, "x")
        drawn = seg.segment(str(ref.picture), Refer(ref.sentences)).masks[0].mask
        pairs.append(((drawn & truth).sum(), (drawn | truth).sum()))
    both, either = np.array(pairs).T
    assert got["bundles"][0]["scores"]["gIoU"] == pytest.approx((both / either).mean(), abs=1e-9)
    assert got["bundles"][0]["scores"]["cIoU"] == pytest.approx(both.sum() / either.sum(), abs=1e-9)


def test_psalm_on_coco(psalm_bundle: Path, coco: Path, class_names: list[str], tmp_path: Path) -> None:
    got, _ = scored(tmp_path, psalm_bundle, "--dataset", "coco-panoptic", coco)
    scores = got["bundles"][0]["scores"]
    assert scores["PQ"] > 0.85 and scores["PQ stuff"] is None and scores["mIoU"] > 0.85
    import torch
    from torchmetrics.detection import PanopticQuality

    void = len(class_names)  # where no annotation is, as torchmetrics wants it: a class that it does not know
    judge = PanopticQuality(things=set(range(void)), stuffs=set(), allow_unknown_preds_category=True,
                            return_per_class=True)  # fmt: skip
    seg = pixelrt.load(psalm_bundle)
    for item in session.open_benchmark("coco-panoptic", coco, session.Options()).items:
        from pixelrt.evaluation.annotations import read_labels

        truth = read_labels(item.label_map, item.size, "x")
        answer = seg.segment(str(item.picture), Classes(class_names))
        wanted = np.stack([np.full_like(truth, void), truth], -1)
        for number, kind in item.segments.items():
            wanted[truth == number, 0] = kind
        drawn = np.stack([np.full_like(truth, void), answer.label_map], -1)
        for segment in answer.segments:
            drawn[answer.label_map == segment.id, 0] = segment.category
        judge.update(torch.tensor(drawn[None].astype(np.int64)), torch.tensor(wanted[None].astype(np.int64)))
    each = judge.compute().numpy().ravel()
    occurs = [k for k in range(void) if class_names[k] in names_in(coco)]
    assert scores["PQ"] == pytest.approx(each[occurs].mean(), abs=1e-6)  # theirs is float32
    assert each.sum() == pytest.approx(each[occurs].sum())
    objects, _ = scored(tmp_path, psalm_bundle, "--dataset", "coco-instance", coco)
    assert objects["bundles"][0]["scores"]["AP50"] > 0.7


def names_in(coco: Path) -> set[str]:
    document = json.loads((coco / "annotations" / "panoptic_val2017.json").read_text())
    name = {c["id"]: c["name"] for c in document["categories"]}
    return {name[s["category_id"]] for a in document["annotations"] for s in a["segments_info"]}


def test_psalm_on_davis(psalm_bundle: Path, davis: Path, tmp_path: Path) -> None:
    for way in ((), ("--blind",)):
        got, _ = scored(tmp_path / "-".join(("d", *way)), psalm_bundle, "--dataset", "davis", davis, *way)
        scores = got["bundles"][0]["scores"]
        assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2) and 0.1 < scores["J"] < 1


def test_two_columns_limits_and_going_on(
    psalm_bundle: Path, tiny_bundle: Path, refcoco: Path, tmp_path: Path
) -> None:
    both = (psalm_bundle, tiny_bundle, "--dataset", "refcoco", refcoco)
    first, text = scored(tmp_path, *both, "--limit", 2)
    assert [b["items"] for b in first["bundles"]] == [2, 2] and "Not the whole split: 2 of" in text
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 2
    line = kept[0].read_bytes()
    kept[0].write_bytes(line[:-7])  # killed while it wrote
    again, text = scored(tmp_path, *both)
    assert "1 of" in text and "2 of" in text and " are in " in text
    fresh, _ = scored(tmp_path / "fresh", *both)
    assert again["bundles"] == fresh["bundles"]
    third, text = scored(tmp_path, *both)
    assert third == again and "ETA" not in text


def test_refusals(
    tiny_bundle: Path, psalm_bundle: Path, coco: Path, muse: Path, refcoco: Path, tmp_path: Path
) -> None:
    for arguments, sentence in (
        (
            (tiny_bundle, "--dataset", "coco-panoptic", coco),
            "family 'pixellm', which is not evaluated on coco-panoptic",
        ),
        (
            (psalm_bundle, "--dataset", "muse", muse),
            "family 'psalm', which is not evaluated on muse; pixellm is",
        ),
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


def test_without_the_extra(
    tiny_bundle: Path, muse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in ("pycocotools", "scipy.optimize"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            patch.setitem(sys.modules, f"{name}.mask", None)
            done = run(tiny_bundle, "--dataset", "muse", muse, "--out", tmp_path / name)
            assert done.exit_code == 2 and "pip install 'pixelrt[eval]'" in done.output
