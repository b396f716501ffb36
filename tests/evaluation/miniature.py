"""Published datasets in miniature: a few drawn pictures, annotated in the form that each dataset is published in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pixelrt import rle

NAMES = ("red circle", "blue star", "green square")
CATEGORY_IDS = (1, 3, 90)  # with gaps, as COCO's
CROWD_ID = 908800474293  # beyond 32 bits, as COCO's crowds


@dataclass(frozen=True)
class Picture:
    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W): 0 for none, else a key of `names`
    names: Mapping[int, str]  # label -> name

    @property
    def size(self) -> tuple[int, int]:
        return self.labels.shape[0], self.labels.shape[1]

    def mask(self, label: int) -> np.ndarray:
        return self.labels == label


def drawn(seed: int, size: tuple[int, int] = (48, 64), names: Sequence[str] = NAMES) -> Picture:
    """Three ellipses, numbered 1 to 3 in the order of `names`, later ones above."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
    labels = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for label in (1, 2, 3):
        cy, cx = rng.integers(10, size[0] - 10), (label - 0.5) * size[1] / 3 + rng.integers(-3, 4)
        inside = ((x - cx) / rng.integers(7, 11)) ** 2 + ((y - cy) / rng.integers(6, 10)) ** 2 < 1
        labels[inside] = label
        image[inside] = rng.integers(100, 256, 3)
    return Picture(image, labels, dict(enumerate(names, start=1)))


def polygons(mask: np.ndarray) -> list[list[float]]:
    """x, y, x, y, ... around each run of pixels of a row: their union is the mask (COCO's rounding included)."""
    found = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for x0, x1 in edges.reshape(-1, 2).tolist():
            found.append([float(v) for v in (x0, y, x1, y, x1, y + 1, x0, y + 1)])
    return found


def write_json(file: Path, document: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def save_picture(file: Path, image: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, quality=95, subsampling=0)
    return file


# ---- RefCOCO ----------------------------------------------------------------------------------------------


def python2_pickle(value: Any) -> bytes:
    """Protocol 0 as Python 2 wrote it: `str` as S'...', which Python 3 never writes."""

    def body(value: Any) -> bytes:
        if isinstance(value, dict):
            pairs = b"".join(body(k) + body(v) + b"s" for k, v in value.items())
            return b"(d" + pairs
        if isinstance(value, list):
            return b"(l" + b"".join(body(v) + b"a" for v in value)
        if isinstance(value, int):
            return b"I%d\n" % value
        if value.isascii():
            return b"S" + repr(value).encode() + b"\n"
        return b"V" + value.encode("raw-unicode-escape") + b"\n"

    return body(value) + b"."


def write_refcoco(
    root: Path, pictures: Sequence[Picture], variant: str = "refcoco", split: str = "val"
) -> Path:
    """The folder of the annotations; two sentences an object, half of the masks as RLE."""
    images, objects, refs = [], [], []
    for n, picture in enumerate(pictures, start=1):
        name = f"COCO_train2014_{n:012}.jpg"
        save_picture(root / "images" / "mscoco" / "images" / "train2014" / name, picture.image)
        images.append({"id": n, "file_name": name, "height": picture.size[0], "width": picture.size[1]})
        for label, called in picture.names.items():
            number, mask = len(objects) + 1, picture.mask(label)
            segmentation = polygons(mask) if number % 2 else [rle.encode(mask)]
            objects.append(
                {"id": number, "image_id": n, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
            )
            sentences = [
                {"sent": text, "raw": text, "sent_id": 2 * number + k, "tokens": text.split()}
                for k, text in enumerate((f"The {called}", called))
            ]
            refs.append(
                {"ref_id": number, "ann_id": number, "image_id": n, "file_name": f"COCO_train2014_{n:012}_{number}.jpg",
                 "category_id": 1, "split": split, "sentences": sentences, "sent_ids": [2 * number, 2 * number + 1]}
            )  # fmt: skip
    folder = root / variant
    write_json(folder / "instances.json", {"images": images, "annotations": objects, "categories": []})
    (folder / "refs(unc).p").write_bytes(python2_pickle(refs))
    return folder


# ---- MUSE -------------------------------------------------------------------------------------------------


def write_muse(
    root: Path, pictures: Sequence[Picture], questions: Sequence[Sequence[tuple[str, Sequence[int]]]]
) -> Path:
    """questions: of each picture, texts and the labels of their targets. Pictures by turns in the three folders."""
    entries = []
    for n, (picture, asked) in enumerate(zip(pictures, questions, strict=True)):
        part = ("train2014", "train2017", "val2017")[n % 3]
        name = f"{n:012}.jpg"
        save_picture(root / part / name, picture.image)
        place = (
            {"file_name": name}
            if part == "train2014"
            else {"coco_url": f"http://images.cocodataset.org/{part}/{name}"}
        )
        targets = {
            label: {
                "segmentation": polygons(picture.mask(label)),
                "bbox": [0, 0, 1, 1],
                "category_name": called,
            }
            for label, called in picture.names.items()
        }
        entries.append(
            {"height": picture.size[0], "width": picture.size[1], "ann_list": list(targets.values()), **place,
             "questions": [text for text, _ in asked], "answers": [[targets[k] for k in labels] for _, labels in asked]}
        )  # fmt: skip
    write_json(root / "muse_val.json", entries)
    return root


# ---- COCO -------------------------------------------------------------------------------------------------


def write_coco(
    root: Path, pictures: Sequence[Picture], names: Sequence[str] = NAMES, stuff: Sequence[str] = ()
) -> Path:
    """Panoptic and instance annotations of the same pictures. Label 250 is a crowd of the first class."""
    ids = dict(zip(names, (*CATEGORY_IDS, *range(100, 100 + len(names))), strict=False))
    categories = [{"id": ids[name], "name": name, "isthing": int(name not in stuff)} for name in names]
    images, objects, segmented = [], [], []
    for n, picture in enumerate(pictures, start=1):
        name = f"{n:012}"
        save_picture(root / "val2017" / f"{name}.jpg", picture.image)
        images.append(
            {"id": n, "file_name": f"{name}.jpg", "height": picture.size[0], "width": picture.size[1]}
        )
        segments, numbers = [], np.zeros(picture.size, np.int64)
        for label in sorted(set(np.unique(picture.labels).tolist()) - {0}):
            mask, crowd = picture.mask(label), label == 250
            number = 1000 * label + 70000  # above 16 bits: all three channels are used
            numbers[mask] = number
            category = ids[names[0] if crowd else picture.names[label]]
            segments.append(
                {"id": number, "category_id": category, "area": int(mask.sum()), "iscrowd": int(crowd)}
            )
            if crowd:
                runs = np.diff(
                    np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel().astype(int), [2]])))
                )
                counts = runs.tolist() if not mask[0, 0] else [0, *runs.tolist()]
                segmentation: Any = {"size": list(picture.size), "counts": counts}
            else:
                segmentation = polygons(mask)
            objects.append(
                {"id": CROWD_ID if crowd else len(objects) + 1, "image_id": n, "category_id": category,
                 "segmentation": segmentation, "area": float(mask.sum()), "bbox": [0, 0, 1, 1], "iscrowd": int(crowd)}
            )  # fmt: skip
        segmented.append({"image_id": n, "file_name": f"{name}.png", "segments_info": segments})
        rgb = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
        save_picture(root / "annotations" / "panoptic_val2017" / f"{name}.png", rgb)
    common = {"images": images, "categories": categories}
    write_json(root / "annotations" / "panoptic_val2017.json", {**common, "annotations": segmented})
    write_json(root / "annotations" / "instances_val2017.json", {**common, "annotations": objects})
    return root


# ---- DAVIS ------------------------------------------------------------------------------------------------


def write_davis(root: Path, videos: Mapping[str, Sequence[Picture]]) -> Path:
    for name, frames in videos.items():
        for t, frame in enumerate(frames):
            save_picture(root / "JPEGImages" / "480p" / name / f"{t:05}.jpg", frame.image)
            labels = Image.fromarray(frame.labels.astype(np.uint8)).convert("P")
            labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [77] * 756)
            file = root / "Annotations" / "480p" / name / f"{t:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            # `convert("P")` keeps the values of an "L" picture.
            labels.save(file)
    listed = root / "ImageSets" / "2017" / "val.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(videos) + "\n")
    return root
