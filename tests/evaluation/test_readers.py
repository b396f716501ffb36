"""The published formats, read: models that know the truth score one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt.evaluation import annotations, coco_panoptic
from pixelrt.evaluation.benchmark import Options
from pixelrt.evaluation.session import open_benchmark

from tests.evaluation import miniature as mini
from tests.evaluation.oracle import PICTURES, WRITERS, Oracle, film

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Path]:
    return lambda dataset: WRITERS[dataset](tmp_path)


def answered(dataset: str, folder: Path, family: str, oracle: Oracle, **options: Any) -> dict[str, float]:
    benchmark = open_benchmark(dataset, folder, Options(**options))
    records = [benchmark.ask[family](oracle, item) for item in benchmark.items]
    return benchmark.scores(benchmark.items, json.loads(json.dumps(records)))


@pytest.mark.parametrize(
    ("dataset", "family"),
    [
        ("refcoco", "pixellm"),
        ("refcoco", "psalm"),
        ("muse", "pixellm"),
        ("coco-instance", "psalm"),
        ("davis", "psalm"),
    ],
)
def test_a_model_that_knows_the_truth(dataset: str, family: str, made: Callable[[str], Path]) -> None:
    folder = made(dataset)
    perfect = answered(dataset, folder, family, Oracle())
    values = [v for name, v in perfect.items() if name not in ("APm", "APl")]  # no object is that large
    assert values == pytest.approx([1.0] * len(values), abs=1e-9)
    moved = answered(dataset, folder, family, Oracle(shift=2))
    assert all(0.05 < v < 0.95 for name, v in moved.items() if name not in ("AP50", "AP75", "APm", "APl"))


def test_refcoco_is_asked_as_the_papers_do(made: Callable[[str], Path]) -> None:
    folder, oracle = made("refcoco"), Oracle()
    answered("refcoco", folder, "pixellm", oracle)
    assert len(oracle.asked) == 18  # every sentence
    assert oracle.asked[0] == (
        "A <im_start><image><im_end>\n What is the red circle in this image? Please output segmentation mask. "
        "B: [SEG0] [SEG1]."
    )
    answered("refcoco", folder, "pixellm", oracle, generate=True, question="Segment {sent}.")
    assert oracle.asked[18] == "Segment the red circle."
    answered("refcoco", folder, "psalm", oracle)
    assert oracle.asked[36].sentences == ("The red circle", "red circle")


def test_muse_counts_surplus_and_missing_masks(made: Callable[[str], Path]) -> None:
    """By hand: one target of the first question is missed, and two masks too many are drawn for the second."""
    folder, oracle = made("muse"), Oracle()
    benchmark = open_benchmark("muse", folder, Options())
    p = PICTURES[0]

    def other(frame: Any, query: Any, max_new_tokens: int = 1) -> Any:
        labels = (1, 2) if "all three" in query else (2, 1, 3)
        return SimpleNamespace(masks=[oracle.mask(frame.picture, k) for k in labels])

    oracle.segment = other  # type: ignore[method-assign]
    record = benchmark.ask["pixellm"](oracle, benchmark.items[0])
    area = {k: int(p.mask(k).sum()) for k in (1, 2, 3)}
    want = [
        (area[1], area[1]),
        (area[2], area[2]),
        (0, area[3]),
        (area[2], area[2]),
        (0, area[1]),
        (0, area[3]),
    ]
    assert sorted(record["overlaps"]) == sorted(want) and record["most"] == 5  # 5 drawn, 4 wanted
    scores = benchmark.scores(benchmark.items[:1], [record])
    assert scores["gIoU"] == pytest.approx(3 / 5)
    assert scores["cIoU"] == pytest.approx((area[1] + 2 * area[2]) / (2 * sum(area.values())))


def test_panoptic_records_of_the_truth_itself(tmp_path: Path) -> None:
    """A crowd and void: what is drawn there is no invention, what is drawn elsewhere is."""
    labels = PICTURES[0].labels.astype(np.int64)
    labels[:6, :6] = 250
    picture = replace(PICTURES[0], labels=labels)
    benchmark = open_benchmark(
        "coco-panoptic", mini.write_coco(tmp_path, [picture], stuff=mini.NAMES[2:]), Options()
    )
    item = benchmark.items[0]
    truth = coco_panoptic.read_truth(item, "source")
    assert sorted(np.unique(truth)) == [0, 71000, 72000, 73000, 320000] and item.crowds == {320000}
    found = {k: kind for k, kind in item.segments.items() if k not in item.crowds}
    classes = np.select([truth == k for k in item.segments], list(item.segments.values()), 1)
    record = coco_panoptic.record(item, truth, truth, found | {320000: 0}, classes, 3)
    assert benchmark.scores([item], [record]) == dict.fromkeys(coco_panoptic.MEASURES, 1.0)
    drawn = np.where(truth == 71000, 0, truth)
    record = coco_panoptic.record(item, truth, drawn, {72000: 1, 73000: 1}, classes, 3)
    assert record["segments"] == {"0": [0, 0, 0, 1], "1": [1, 1, 1, 0], "2": [0, 0, 0, 1]}
    assert benchmark.scores([item], [record])["PQ stuff"] == 0


def test_davis_is_asked_as_the_paper_does(tmp_path: Path) -> None:
    """In the third frame one object is hidden: the first frame is asked for the rest; then memory has too few."""
    frames = film(0)
    hidden = frames[2].labels.copy()
    hidden[hidden == 2] = 0
    frames[2] = replace(frames[2], labels=hidden)
    oracle = Oracle()
    benchmark = open_benchmark("davis", mini.write_davis(tmp_path, {"bear": frames}), Options())
    record = benchmark.ask["psalm"](oracle, benchmark.items[0])
    assert [len(one) for one in record["j"]] == [3, 3, 3]  # neither the first frame nor the last is judged
    asked = [(len(q.regions.masks), int(np.argmin([np.abs(q.first.picture.image.astype(int) - f.image).mean()
              for f in frames]))) for q in oracle.asked]  # fmt: skip
    assert asked == [(3, 0), (2, 0), (3, 0), (3, 3)]  # objects, and the frame they were looked up in
    shown = np.array(Image.open(tmp_path / "Annotations" / "480p" / "bear" / "00000.png"))
    assert set(np.unique(shown)) == {0, 1, 2, 3}


def test_polygons_and_both_kinds_of_rle_are_one_mask() -> None:
    from pixelrt import rle

    mask = PICTURES[0].mask(1)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel().astype(int), [2]])))).tolist()
    plain = {"size": list(mask.shape), "counts": runs}
    for segmentation in (mini.polygons(mask), rle.encode(mask), [rle.encode(mask)], plain):
        np.testing.assert_array_equal(annotations.read_mask(segmentation, mask.shape, "x"), mask)
    assert not annotations.read_mask([], mask.shape, "x").any()
