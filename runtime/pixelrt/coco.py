"""COCO's file formats for panoptic segmentation and for instances, and plain label maps.

panoptic PNG: segment id = R + 256 G + 65536 B, 0 for no segment; the JSON beside it says what each id is.
Category ids are the classes' places in the query, from 0; boxes are x, y, width, height.

Source: the COCO pages "Data format" and "Results format"; `pycocotools` and `panopticapi` read these files.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.masks import Mask
from pixelrt.palette import colours

IMAGE_ID = 1  # one picture a file


@dataclass(frozen=True)
class Category:
    name: str
    is_thing: bool


class SegmentLike(Protocol):
    """What a panoptic file says of one segment."""

    @property
    def id(self) -> int: ...
    @property
    def category(self) -> int: ...
    @property
    def area(self) -> int: ...
    @property
    def box(self) -> tuple[int, int, int, int]: ...


def panoptic_png(label_map: NDArray[np.int32]) -> bytes:
    rgb = np.stack([label_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return _png(rgb)


def label_png(label_map: NDArray[np.int32]) -> bytes:
    deep = label_map.max(initial=0) > 255
    return _png(label_map.astype(np.uint16 if deep else np.uint8))


def indexed_png(label_map: NDArray[np.int32], count: int) -> bytes:
    """A PNG whose pixel values are the labels 0..255 and whose palette makes them visible, as in DAVIS."""
    picture = Image.fromarray(label_map.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, *(level for colour in colours(count) for level in colour)])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def panoptic_document(
    shape: tuple[int, ...],
    segments: Iterable[SegmentLike],
    categories: Sequence[Category],
    image: str,
    png: str,
) -> dict[str, Any]:
    """shape: H, W. image, png: file names."""
    info = [
        {"id": s.id, "category_id": s.category, "area": s.area, "bbox": _xywh(s.box), "iscrowd": 0}
        for s in segments
    ]
    return {
        "images": [_image(shape, image)],
        "annotations": [{"image_id": IMAGE_ID, "file_name": png, "segments_info": info}],
        "categories": _categories(categories),
    }


def instance_document(
    shape: tuple[int, ...],
    masks: Iterable[Mask],
    category: Sequence[int],
    categories: Sequence[Category],
    image: str,
) -> dict[str, Any]:
    """shape: H, W. The `annotations` alone are COCO's results format. Empty masks are left out."""
    annotations = [
        {
            "id": number,
            "image_id": IMAGE_ID,
            "category_id": index,
            "segmentation": mask.rle(),
            "area": mask.area,
            "bbox": _xywh(mask.box),
            "iscrowd": 0,
            "score": float(mask.score),
        }
        for number, (mask, index) in enumerate(zip(masks, category, strict=True), start=1)
        if mask.box is not None
    ]
    return {
        "images": [_image(shape, image)],
        "annotations": annotations,
        "categories": _categories(categories),
    }


def _image(shape: tuple[int, ...], name: str) -> dict[str, Any]:
    return {"id": IMAGE_ID, "file_name": name, "height": int(shape[0]), "width": int(shape[1])}


def _categories(categories: Sequence[Category]) -> list[dict[str, Any]]:
    return [{"id": k, "name": c.name, "isthing": int(c.is_thing)} for k, c in enumerate(categories)]


def _xywh(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _png(pixels: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
