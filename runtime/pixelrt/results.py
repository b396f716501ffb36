"""Results of queries about classes, sentences and regions. Masks are unpacked when they are asked for.

Each result has `masks`, `timing`, `text` (empty: these families write none), `to_json()` and `files()`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pixelrt import coco
from pixelrt.masks import Mask

Bits = NDArray[np.bool_]
Labels = NDArray[np.int32]
Box = tuple[int, int, int, int]


class Packed:
    """A mask (H, W) as bits of its box."""

    def __init__(self, bits: NDArray[np.uint8], width: int, box: Box | None) -> None:
        """bits: (H, ceil(W / 8)), as numpy.packbits orders them."""
        self.shape, self.box = (len(bits), width), box
        x0, y0, x1, y1 = box or (0, 0, 0, 0)
        left, right = x0 // 8, -(-x1 // 8)  # in bytes
        self._window = slice(y0, y1), slice(8 * left, min(8 * right, width))
        self._bits = bits[y0:y1, left:right].copy()

    def mask(self) -> Bits:
        out = np.zeros(self.shape, np.bool_)
        window = out[self._window]
        window[...] = np.unpackbits(self._bits, axis=1, count=window.shape[1])
        return out


class Masks(Sequence[Mask]):
    """Masks that are made anew each time one is asked for."""

    def __init__(self, makers: Sequence[Callable[[], Mask]]) -> None:
        self._makers = list(makers)

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Masks: ...
    def __getitem__(self, index: int | slice) -> Mask | Masks:
        return Masks(self._makers[index]) if isinstance(index, slice) else self._makers[index]()

    def __iter__(self) -> Iterator[Mask]:
        return (make() for make in self._makers)


@dataclass(frozen=True, eq=False)
class Segment:
    """One thing, or all pixels of one class."""

    id: int  # its number in the label map
    category: int  # place in the query's names
    label: str
    is_thing: bool
    score: float  # probability of the class
    area: int
    box: Box
    low_res_logits: NDArray[np.float32]  # (h, w), the largest of the queries joined

    def mask(self, label_map: Labels) -> Mask:
        return Mask(label_map == self.id, self.score, self.label, None, self.box, self.low_res_logits)


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Every pixel belongs to one segment or to none."""

    label_map: Labels  # (H, W) segment ids from 1, 0 where there is none
    segments: list[Segment]  # score: of the first of the queries joined
    categories: Sequence[coco.Category]
    timing: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    @property
    def masks(self) -> Masks:
        return Masks([partial(segment.mask, self.label_map) for segment in self.segments])

    def to_json(self) -> dict[str, Any]:
        document = _document(self.text, self.masks, self.timing)
        for entry, segment in zip(document["masks"], self.segments, strict=True):
            entry |= {"id": segment.id, "category_id": segment.category, "is_thing": segment.is_thing}
        return document

    def files(self, image: str) -> dict[str, bytes]:
        """COCO panoptic format: `panoptic.png` and `panoptic.json`. image: its file's name."""
        document = coco.panoptic_document(
            self.label_map.shape, self.segments, self.categories, image, "panoptic.png"
        )
        return {"panoptic.png": coco.panoptic_png(self.label_map), "panoptic.json": _bytes(document)}


@dataclass(frozen=True, eq=False)
class Instances:
    """Scored objects, best first; they may overlap."""

    shape: tuple[int, int]  # H, W
    masks: Sequence[Mask]
    category: list[int]  # of each mask: place in the query's names
    categories: Sequence[coco.Category]
    timing: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        document = _document(self.text, self.masks, self.timing)
        for entry, category in zip(document["masks"], self.category, strict=True):
            entry["category_id"] = category
        return document

    def files(self, image: str) -> dict[str, bytes]:
        """COCO instance format, masks as RLE: `instances.json`. image: its file's name."""
        return {
            "instances.json": _bytes(
                coco.instance_document(self.shape, self.masks, self.category, self.categories, image)
            )
        }


@dataclass(frozen=True, eq=False)
class Semantic:
    """One class a pixel."""

    label_map: Labels  # (H, W) place in the query's names, from 0
    segments: list[Segment]  # classes that have pixels, largest first; score: their mean share of the sum
    categories: Sequence[coco.Category]
    timing: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    @property
    def masks(self) -> Masks:
        return Masks([partial(segment.mask, self.label_map) for segment in self.segments])

    def to_json(self) -> dict[str, Any]:
        document = _document(self.text, self.masks, self.timing)
        for entry, segment in zip(document["masks"], self.segments, strict=True):
            entry["category_id"] = segment.category
        return document

    def files(self, image: str) -> dict[str, bytes]:
        """`semantic.png`: the label map, 8 bits a pixel, 16 where there are more than 256 classes."""
        return {"semantic.png": coco.label_png(self.label_map)}


@dataclass(frozen=True, eq=False)
class Tracked:
    """The objects of a video in one of its frames, in the order they were marked."""

    masks: Sequence[Mask]  # as predicted; they may overlap
    label_map: Labels  # (H, W) number of the object, from 1, 0 where there is none; later objects lie on top
    timing: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        return _document(self.text, self.masks, self.timing)

    def files(self, image: str) -> dict[str, bytes]:
        """`labels.png`: the label map."""
        return {"labels.png": coco.label_png(self.label_map)}


def _document(text: str, masks: Sequence[Mask], timing: Mapping[str, float]) -> dict[str, Any]:
    return {
        "text": text,
        "masks": [mask.to_json() for mask in masks],
        "timing_ms": {stage: round(float(spent), 3) for stage, spent in timing.items()},
    }


def _bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()
