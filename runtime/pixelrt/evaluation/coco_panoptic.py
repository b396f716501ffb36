"""COCO panoptic segmentation: PQ (Kirillov et al.; panopticapi), and mean IoU of the classes.

All classes of the annotation file are asked for at once, in its order. The class map whose mean IoU is taken comes from
the same pass, as the original makes it in its panoptic mode (psalm_masks.semantic_bands, order `logits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import InputError
from pixelrt.evaluation import annotations as read
from pixelrt.evaluation.benchmark import Benchmark, Options, Record
from pixelrt.evaluation.measures import Labels, class_overlaps, counts, mean_class_iou, quality
from pixelrt.queries import Classes

VOID = 0
MEASURES = ("PQ", "SQ", "RQ", "PQ things", "PQ stuff", "mIoU")
FORM = {
    "images": [{"id": object, "file_name": str, "height": int, "width": int}],
    "annotations": [
        {
            "image_id": object,
            "file_name": str,
            "segments_info": [{"id": int, "category_id": object, "iscrowd?": int}],
        }
    ],
    "categories": [{"id": object, "name": str, "isthing": int}],
}


@dataclass(frozen=True)
class Annotated:
    id: int
    picture: Path
    size: tuple[int, int]  # H, W
    label_map: Path
    segments: dict[int, int]  # number in the label map -> class, as its place in the list
    crowds: frozenset[int]  # numbers of regions with too many things to tell apart


def open_coco_panoptic(folder: Path, options: Options) -> Benchmark:
    """folder: with annotations/panoptic_SPLIT.json, the label maps of that name, and SPLIT/ or --images."""
    split = options.split or "val2017"
    source = folder / "annotations" / f"panoptic_{split}.json"
    sha256 = read.file_sha256(source, "COCO's panoptic annotations")
    document = read.checked(read.read_json(source, "COCO's panoptic annotations"), FORM, str(source))
    images = read.by_id(document["images"], source, "pictures")
    categories = list(read.by_id(document["categories"], source, "categories").values())
    place = {category["id"]: k for k, category in enumerate(categories)}
    names = tuple(category["name"] for category in categories)
    things = tuple(category["name"] for category in categories if category["isthing"])
    query = Classes(names, task="panoptic", things=things)
    maps = next(
        (root for root in (source.with_suffix(""), folder / source.stem) if root.is_dir()),
        source.with_suffix(""),
    )
    items = []
    for entry in document["annotations"]:
        who = f"{source}: {entry['file_name']}"
        image = read.looked_up(images, entry["image_id"], who, "picture")
        segments: dict[int, int] = {}
        for segment in entry["segments_info"]:
            if segment["id"] in segments or segment["id"] == VOID:
                raise InputError(f"{who} has two segments {segment['id']}, or one numbered 0. {read.ADVICE}")
            segments[segment["id"]] = read.looked_up(place, segment["category_id"], who, "category")
        crowds = frozenset(s["id"] for s in entry["segments_info"] if s.get("iscrowd"))
        picture = (options.images or folder / split) / image["file_name"]
        size = (image["height"], image["width"])
        items.append(Annotated(entry["image_id"], picture, size, maps / entry["file_name"], segments, crowds))
    if not items:
        raise InputError(f"{source} annotates no picture. {read.ADVICE}")
    is_thing = np.array([query.is_thing(k) for k in range(len(names))])
    return Benchmark(
        name="coco-panoptic",
        variant="coco-panoptic",
        split=split,
        protocol={"psalm": f"one pass for all {len(names)} classes"},
        sha256=sha256,
        items=items,
        identify=lambda item: str(item.id),
        files=lambda item: (item.picture, item.label_map),
        ask={"psalm": partial(ask, query=query, source=str(source))},
        measures=MEASURES,
        scores=partial(scores, is_thing=is_thing),
        unit="pictures",
    )


def ask(segmenter: Any, item: Annotated, query: Classes, source: str) -> Record:
    from pixelrt.families import psalm_masks as post

    truth = read_truth(item, source)
    frame = segmenter.encode(read.read_picture(item.picture, item.size, source))
    logits, class_scores, sizes = segmenter.decoded(frame, query)
    answer = post.panoptic(logits, class_scores, query, sizes)
    found = {segment.id: segment.category for segment in answer.segments}
    class_map = np.empty(item.size, np.int64)
    for part, values in post.semantic_bands(logits, class_scores, sizes, order="logits"):
        class_map[part] = values.argmax(0)
    return record(item, truth, answer.label_map, found, class_map, len(query.names))


def read_truth(item: Annotated, source: str) -> Labels:
    """The label map; what it shows and what is listed must be the same segments."""
    truth = read.read_labels(item.label_map, item.size, source)
    shown = set(np.unique(truth).tolist()) - {VOID}
    for number in sorted(shown ^ set(item.segments)):
        where = "shows" if number in shown else "does not show"
        listed = "does not list" if number in shown else "lists"
        raise InputError(f"{item.label_map} {where} segment {number}, which {source} {listed}. {read.ADVICE}")
    return truth


def record(
    item: Annotated, truth: Labels, drawn: Labels, found: dict[int, int], class_map: Labels, classes: int
) -> Record:
    """Rows of the classes that occur."""
    table = counts(truth, item.segments, drawn, found, classes, item.crowds, VOID)
    numbers, place = np.unique(truth, return_inverse=True)
    class_of = np.array([item.segments.get(int(number), -1) for number in numbers])
    overlaps = class_overlaps(class_of[place].reshape(truth.shape), class_map, classes)
    return {
        "segments": {str(k): table[k].tolist() for k in np.flatnonzero(table.any(1))},
        "classes": {str(k): overlaps[k].tolist() for k in np.flatnonzero(overlaps.any(1))},
    }


def scores(items: Sequence[Any], records: Sequence[Record], is_thing: Any) -> dict[str, float]:
    table, overlaps = np.zeros((len(is_thing), 4)), np.zeros((len(is_thing), 3), np.int64)
    for one in records:
        for k, row in one["segments"].items():
            table[int(k)] += row
        for k, row in one["classes"].items():
            overlaps[int(k)] += row
    pq, sq, rq = quality(table)
    things, stuff = (
        quality(table[part])[0] if table[part].any() else float("nan") for part in (is_thing, ~is_thing)
    )
    values = (pq, sq, rq, things, stuff, mean_class_iou(overlaps))
    return dict(zip(MEASURES, values, strict=True))
