"""A dataset made ready: its items, what to ask about each, and how the records of the answers sum up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelrt.segmenter import Frame, Segmenter

Record = dict[str, Any]  # what an item gave, in plain JSON types, enough for every measure
Ask = Callable[[Segmenter, Any], Record]


@dataclass(frozen=True)
class Options:
    """What can be said beside the dataset's folder; None for the dataset's own."""

    split: str | None = None
    images: Path | None = None  # folder of the pictures
    question: str | None = None  # PixelLM: with {sent} in it
    generate: bool = False  # refcoco, PixelLM: the model writes its answer itself
    blind: bool = False  # davis: the model is not told which objects a frame shows


@dataclass(frozen=True)
class Benchmark:
    name: str  # as --dataset names it
    variant: str  # of several datasets in one format: refcoco, refcoco+, ...
    split: str
    protocol: Mapping[str, str]  # family -> how it is asked, one line; part of what a journal must agree with
    sha256: str  # of the annotations
    items: Sequence[Any]
    identify: Callable[[Any], str]
    files: Callable[[Any], Sequence[Path]]  # that an item needs; looked for before the first is asked about
    ask: Mapping[str, Ask]  # family -> how it is asked
    measures: Sequence[str]
    scores: Callable[
        [Sequence[Any], Sequence[Record]], dict[str, float]
    ]  # items, their records -> measure -> value
    unit: str = "items"  # in the plural


@dataclass
class LastFrame:
    """The frame of the last picture, for items that share one."""

    key: object = None
    frame: Frame | None = field(default=None)

    def of(self, segmenter: Segmenter, key: object, read: Callable[[], Any]) -> Frame:
        """key: what tells pictures apart."""
        if self.frame is None or self.key != (key, segmenter.bundle.sha256):
            self.key, self.frame = (key, segmenter.bundle.sha256), segmenter.encode(read())
        return self.frame
