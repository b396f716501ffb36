"""COCO instance segmentation: average precision, by pycocotools itself.

All classes of the annotation file are asked for at once, in its order; the model's 100 best objects are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError
from pixelrt.evaluation import annotations as read
from pixelrt.evaluation.benchmark import Benchmark, Options, Record
from pixelrt.evaluation.coco_api import PRECISIONS, average_precision
from pixelrt.queries import Classes
from pixelrt.results import Instances
from pixelrt.segmenter import Segmenter

FORM = {
    "images": [{"id": object, "file_name": str, "height": int, "width": int}],
    "annotations": [
        {
            "id": object,
            "image_id": object,
            "category_id": object,
            "segmentation": object,
            "area": object,
            "iscrowd": int,
        }
    ],
    "categories": [{"id": object, "name": str}],
}


@dataclass(frozen=True)
class Annotated:
    id: int
    picture: Path
    size: tuple[int, int]  # H, W
    segmentations: tuple[Any, ...]


def open_coco_instance(folder: Path, options: Options) -> Benchmark:
    """folder: with annotations/instances_SPLIT.json, and SPLIT/ or --images."""
    split = options.split or "val2017"
    source = folder / "annotations" / f"instances_{split}.json"
    sha256 = read.file_sha256(source, "COCO's instance annotations")
    document = read.checked(read.read_json(source, "COCO's instance annotations"), FORM, str(source))
    images = read.by_id(document["images"], source, "pictures")
    categories = read.by_id(document["categories"], source, "categories")
    read.by_id(document["annotations"], source, "objects")
    objects: dict[int, list[Any]] = {number: [] for number in images}
    for entry in document["annotations"]:
        who = f"{source}: object {entry['id']}"
        read.looked_up(images, entry["image_id"], who, "picture")
        read.looked_up(categories, entry["category_id"], who, "category")
        if type(entry["area"]) not in (int, float):
            raise InputError(f"{who} has the area {entry['area']!r:.40}, not a number. {read.ADVICE}")
        objects[entry["image_id"]].append(entry["segmentation"])
    root = options.images or folder / split
    items = [
        Annotated(
            number, root / image["file_name"], (image["height"], image["width"]), tuple(objects[number])
        )
        for number, image in images.items()
    ]
    if not items:
        raise InputError(f"{source} lists no picture. {read.ADVICE}")
    query = Classes(tuple(category["name"] for category in categories.values()), task="instance")
    return Benchmark(
        name="coco-instance",
        variant="coco-instance",
        split=split,
        protocol={"psalm": f"one pass for all {len(categories)} classes, the 100 best objects"},
        sha256=sha256,
        items=items,
        identify=lambda item: str(item.id),
        files=lambda item: (item.picture,),
        ask={"psalm": partial(ask, query=query, categories=tuple(categories), source=str(source))},
        measures=PRECISIONS,
        scores=partial(scores, truth=document),
        unit="pictures",
    )


def ask(
    segmenter: Segmenter, item: Annotated, query: Classes, categories: Sequence[int], source: str
) -> Record:
    """Every annotated mask is read first: a damaged one is found here and not by pycocotools at the end."""
    for segmentation in item.segmentations:
        read.read_mask(segmentation, item.size, f"{source}: an object of {item.picture.name}")
    frame = segmenter.encode(read.read_picture(item.picture, item.size, source))
    answer = segmenter.segment(frame, query)
    if not isinstance(answer, Instances):
        raise TypeError(f"an instance query was answered with {type(answer).__name__}")
    found = [
        {"category_id": categories[kind], "segmentation": mask.rle(), "score": float(mask.score)}
        for mask, kind in zip(answer.masks, answer.category, strict=True)
        if mask.box is not None
    ]
    return {"found": found}


def scores(items: Sequence[Annotated], records: Sequence[Record], truth: dict[str, Any]) -> dict[str, float]:
    found = [
        {"image_id": item.id, **one}
        for item, record in zip(items, records, strict=True)
        for one in record["found"]
    ]
    return average_precision(truth, [item.id for item in items], found)
