"""Each dataset that is malformed gets a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt.errors import InputError
from pixelrt.evaluation import coco_panoptic, davis, refer_file
from pixelrt.evaluation.benchmark import Options
from pixelrt.evaluation.session import DATASETS, check_bundles, open_benchmark

from tests.evaluation import miniature as mini
from tests.evaluation.oracle import PICTURES, WRITERS, Oracle

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")


def edited(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        document = json.loads((root / file).read_text())
        change(document)
        (root / file).write_text(json.dumps(document))

    return apply


def smaller(file: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with Image.open(root / file) as picture:
            half = picture.resize((picture.width // 2, picture.height))
        half.save(root / file)

    return apply


def refs(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "refcoco" / "refs(unc).p"
        value = refer_file.read_refs(file)
        change(value)
        file.write_bytes(mini.python2_pickle(value))

    return apply


JPEG = "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"
PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
MALFORMED = {
    "instances gone": ("refcoco", lambda r: (r / "refcoco/instances.json").unlink(), "instances.json is missing"),
    "refs gone": ("refcoco", lambda r: (r / "refcoco/refs(unc).p").unlink(), r"has none of refs\(unc\)"),
    "no JSON": ("refcoco", lambda r: (r / "refcoco/instances.json").write_text("{"), "is not JSON"),
    "no list": ("refcoco", edited("refcoco/instances.json", lambda d: d.update(images=3)), "is 3, wanted a list"),
    "no width": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][0].pop("width")), "lacks width"),
    "no such object": ("refcoco", refs(lambda v: v[0].update(ann_id=77)), "object 77, which"),
    "no such picture": ("refcoco", refs(lambda v: v[0].update(image_id=77)), "names picture 77"),
    "no sentence": ("refcoco", refs(lambda v: v[0].update(sentences=[])), "has no sentence"),
    "same reference": ("refcoco", refs(lambda v: v[0].update(ref_id=2)), "two references named 2"),
    "other refs": ("refcoco", refs(lambda v: v[0].pop("split")), "lacks split"),
    "one id twice": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][1].update(id=1)), "has two"),
    "id of text": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][1].update(id="x")), "number"),
    "picture resized": ("refcoco", smaller(JPEG), r"has 48 x 32 pixels .* says 48 x 64"),
    "picture gone": ("refcoco", lambda r: (r / JPEG).unlink(), "is not there"),
    "no picture": ("refcoco", lambda r: (r / JPEG).write_bytes(b"x"), "not a picture"),
    "bad polygon": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][0].update(segmentation=[[1, 2]])),
        "three points",
    ),
    "mask of words": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][0].update(segmentation=["x"])),
        "no mask that can be read",
    ),
    "RLE of another size": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][1]["segmentation"][0].update(size=[3, 4])),
        "its RLE is 3 x 4, the picture 48 x 64",
    ),
    "fewer answers": ("muse", edited("muse_val.json", lambda d: d[0]["answers"].pop()), "2 questions and 1 answers"),
    "no place": ("muse", edited("muse_val.json", lambda d: d[0].pop("file_name")), "neither file_name nor coco_url"),
    "no entries": ("muse", edited("muse_val.json", lambda d: d.clear()), "has no questions"),
    "not MUSE": ("muse", lambda r: mini.write_json(r / "muse_val.json", {"images": []}), "wanted a list"),
    "unknown category": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"][0].update(category_id=7)),
        "names category 7",
    ),
    "segment not listed": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"].pop()),
        "shows segment 73000, which .* does not list",
    ),
    "segment not shown": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"][0].update(id=5)),
        "does not show segment 5",
    ),
    "map resized": ("coco-panoptic", smaller("annotations/panoptic_val2017/000000000001.png"), "48 x 32 pixels"),
    "map gone": (
        "coco-panoptic",
        lambda r: (r / "annotations/panoptic_val2017/000000000001.png").unlink(),
        "is not there",
    ),
    "same class twice": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["categories"][0].update(name="blue star")),
        "given more than once",
    ),
    "unknown class": ("coco-instance", edited(INSTANCES, lambda d: d["annotations"][0].update(category_id=7)), "y 7"),
    "area of text": ("coco-instance", edited(INSTANCES, lambda d: d["annotations"][0].update(area="x")), "area 'x'"),
    "bad mask": (
        "coco-instance",
        edited(INSTANCES, lambda d: d["annotations"][0].update(segmentation={"size": [48, 64], "counts": [1]})),
        "do not add up",
    ),
    "no list of videos": ("davis", lambda r: (r / "ImageSets/2017/val.txt").unlink(), "list of DAVIS"),
    "unknown video": ("davis", lambda r: (r / "ImageSets/2017/val.txt").write_text("cat"), "names the video cat"),
    "frame gone": ("davis", lambda r: (r / "JPEGImages/480p/bear/00002.jpg").unlink(), "00002 of bear is in only"),
    "frame resized": ("davis", smaller("JPEGImages/480p/bear/00001.jpg"), "48 x 32 pixels"),
    "new object": (
        "davis",
        lambda r: Image.fromarray(np.full((48, 64), 9, np.uint8)).save(r / "Annotations/480p/bear/00001.png"),
        r"shows the objects \[9\], the first frame \[1, 2, 3\]",
    ),
    "no PNG": ("davis", lambda r: (r / "Annotations/480p/bear/00001.png").write_bytes(b"x"), "not a PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    dataset, damage, sentence = MALFORMED[case]
    folder = WRITERS[dataset](tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as refused:
        benchmark = open_benchmark(dataset, folder, Options())
        for item in benchmark.items:
            for file in benchmark.files(item):
                if not file.is_file():
                    raise InputError(f"{file} is not there.")
            if dataset == "coco-panoptic":
                coco_panoptic.read_truth(item, "the annotations")
            else:
                benchmark.ask[next(iter(benchmark.ask))](Oracle(), item)
    words = str(refused.value)
    assert re.search(sentence, words) and words.endswith(".") and "\n" not in words


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    folder = WRITERS["refcoco"](tmp_path)
    for options, sentence in (
        (Options(split="testC"), "no split 'testC'. Choose one of: val"),
        (Options(question="What?"), "has no {sent}"),
        (Options(blind=True), "--blind was given, but refcoco does not take it"),
        (Options(images=tmp_path / "nowhere"), "is not a folder"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            open_benchmark("refcoco", folder, options)
    with pytest.raises(InputError, match="is not a folder"):
        open_benchmark("davis", tmp_path / "nowhere", Options())
    assert set(WRITERS) == set(DATASETS)
    assert davis.UNJUDGED == 255 and check_bundles([], open_benchmark("refcoco", folder, Options())) == []


def test_a_variant_is_known_by_its_folder(tmp_path: Path) -> None:
    folder = mini.write_refcoco(tmp_path, PICTURES, "refcoco+", "testB")
    assert open_benchmark("refcoco", folder, Options(split="testB")).variant == "refcoco+"
