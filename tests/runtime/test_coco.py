"""Panoptic and instance files: what pycocotools makes of them is what the result says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt import coco
from pixelrt.coco import Category
from pixelrt.masks import Mask
from pixelrt.results import Instances, Masks, Packed, Panoptic, Segment, Semantic, Tracked

CATEGORIES = [Category("person", True), Category("sky", False), Category("tree", False)]
LOGITS = np.zeros((2, 2), np.float32)


def panoptic(shape: tuple[int, int] = (40, 60), count: int = 5) -> Panoptic:
    """Segments that are stripes of blocks, with nothing between them."""
    label_map = np.zeros(shape, np.int32)
    segments = []
    for n in range(1, count + 1):
        y, x = divmod(n - 1, 5)
        label_map[8 * y : 8 * y + 6, 12 * x : 12 * x + n % 9 + 2] = n
        ys, xs = np.nonzero(label_map == n)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        kind = n % 3
        segments.append(
            Segment(n, kind, CATEGORIES[kind].name, CATEGORIES[kind].is_thing, 0.9, len(ys), box, LOGITS)
        )
    return Panoptic(label_map, segments, CATEGORIES, {"masks": 1.0})


def instances(seed: int = 0) -> Instances:
    """Overlapping boxes; the last one is empty."""
    rng = np.random.default_rng(seed)
    masks = []
    for n in range(6):
        mask = np.zeros((40, 60), bool)
        y, x = rng.integers(0, 25, 2)
        mask[y : y + 12, x : x + 17] = rng.random((12, 17)) < 0.7
        mask &= n < 5
        ys, xs = np.nonzero(mask)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if n < 5 else None
        masks.append(Mask(mask, 1 - n / 10, CATEGORIES[n % 3].name, None, box, LOGITS))
    return Instances((40, 60), masks, [n % 3 for n in range(6)], CATEGORIES)


def ids_of(png: bytes) -> np.ndarray:
    """The format's own rule: id = R + 256 G + 256^2 B."""
    rgb = np.asarray(Image.open(io.BytesIO(png))).astype(np.int64)
    assert rgb.shape[2] == 3
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


def test_panoptic_files() -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    result = panoptic()
    files = result.files("picture.jpg")
    assert list(files) == ["panoptic.png", "panoptic.json"]
    ids, document = ids_of(files["panoptic.png"]), json.loads(files["panoptic.json"])
    assert np.array_equal(ids, result.label_map)
    image, (annotation,) = document["images"][0], document["annotations"]
    assert image == {"id": 1, "file_name": "picture.jpg", "height": 40, "width": 60}
    assert annotation["image_id"] == 1 and annotation["file_name"] == "panoptic.png"
    assert [c["name"] for c in document["categories"]] == ["person", "sky", "tree"]
    assert [c["isthing"] for c in document["categories"]] == [1, 0, 0]
    assert {s["id"] for s in annotation["segments_info"]} == set(np.unique(ids)) - {0}
    for info in annotation["segments_info"]:
        rle = mask_api.encode(np.asfortranarray(ids == info["id"], np.uint8))
        assert info["area"] == mask_api.area(rle) and info["bbox"] == mask_api.toBbox(rle).tolist()
        assert info["category_id"] == info["id"] % 3 and info["iscrowd"] == 0


def test_ids_beyond_one_byte() -> None:
    label_map = np.array([[0, 1, 255, 256], [257, 65535, 65536, (1 << 24) - 1]], np.int32)
    assert np.array_equal(ids_of(coco.panoptic_png(label_map)), label_map)


def test_instances_load_in_pycocotools(tmp_path: Path) -> None:
    api = pytest.importorskip("pycocotools.coco")
    result = instances()
    path = tmp_path / "instances.json"
    path.write_bytes(result.files("picture.jpg")["instances.json"])
    loaded = api.COCO(str(path))
    assert loaded.getImgIds() == [1] and loaded.getCatIds() == [0, 1, 2]
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert len(annotations) == 5  # the empty one is left out
    for annotation, mask in zip(annotations, result.masks, strict=False):
        assert np.array_equal(loaded.annToMask(annotation), mask.mask)
        assert annotation["area"] == mask.area and annotation["score"] == mask.score
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == mask.box
    results = loaded.loadRes(json.loads(path.read_text())["annotations"])
    assert len(results.getAnnIds()) == 5


def test_instances_of_a_perfect_answer_score_one(tmp_path: Path) -> None:
    """The file as truth and as result: pycocotools' average precision is 1."""
    api, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    path = tmp_path / "instances.json"
    path.write_bytes(instances().files("picture.jpg")["instances.json"])
    truth = api.COCO(str(path))
    run = evaluation.COCOeval(truth, truth.loadRes(json.loads(path.read_text())["annotations"]), "segm")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert run.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("largest", [3, 255, 256, 999])
def test_label_maps_keep_their_numbers(largest: int) -> None:
    label_map = np.array([[0, 1], [2, largest]], np.int32)
    result = Semantic(label_map, [], CATEGORIES)
    picture = Image.open(io.BytesIO(result.files("x")["semantic.png"]))
    assert np.array_equal(np.asarray(picture).astype(int), label_map)
    picture = Image.open(io.BytesIO(Tracked([], label_map).files("x")["labels.png"]))
    assert np.array_equal(np.asarray(picture).astype(int), label_map)


def test_indexed_maps_show_colours() -> None:
    label_map = np.array([[0, 1, 2], [7, 254, 255]], np.int32)
    picture = Image.open(io.BytesIO(coco.indexed_png(label_map, 255)))
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), label_map)
    shown = np.asarray(picture.convert("RGB"))
    assert not shown[0, 0].any() and shown[0, 1].any() and not np.array_equal(shown[0, 1], shown[0, 2])


def test_masks_are_made_when_asked_for() -> None:
    made: list[int] = []

    def maker(k: int) -> Any:
        return lambda: made.append(k) or k

    masks = Masks([maker(k) for k in range(5)])
    assert len(masks) == 5 and not made
    assert masks[3] == 3 and masks[-1] == 4 and made == [3, 4]
    assert list(masks[1:3]) == [1, 2] and list(masks) == [0, 1, 2, 3, 4]


def test_packed_masks() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((37, 53), bool)
    mask[3:20, 11:40] = rng.random((17, 29)) < 0.5
    mask[3, 11] = mask[19, 39] = True
    assert np.array_equal(Packed(np.packbits(mask, axis=1), mask.shape[1], (11, 3, 40, 20)).mask(), mask)
    assert not Packed(np.zeros((3, 1), np.uint8), 4, None).mask().any()


def test_json_of_results() -> None:
    document = panoptic().to_json()
    assert [m["id"] for m in document["masks"]] == [1, 2, 3, 4, 5]
    assert document["masks"][0]["is_thing"] is False and document["masks"][2]["category_id"] == 0
    assert document["timing_ms"] == {"masks": 1.0} and document["text"] == ""
    document = instances().to_json()
    assert [m["category_id"] for m in document["masks"]] == [0, 1, 2, 0, 1, 2]
    for result in (panoptic(), instances(), Tracked(instances().masks, np.zeros((2, 2), np.int32))):
        json.dumps(result.to_json())
