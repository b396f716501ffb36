"""Results: one mask, one answer, and the words each mask stands after."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.rle import Rle, encode


@dataclass(frozen=True, eq=False)
class Mask:
    """One object of the answer. `box` is x0, y0, x1, y1, the last two exclusive; None for an empty mask."""

    mask: NDArray[np.bool_]  # (H, W) at the original size
    score: float  # mean probability of the mask's own pixels, times that of its class if it has one, 0..1
    label: str  # the words it stands after, or the class or region it answers; "" if none
    span: tuple[int, int] | None  # where its marker is in Answer.text
    box: tuple[int, int, int, int] | None
    low_res_logits: NDArray[np.float32]  # (h, w), the square picture with its padding

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())

    def rle(self) -> Rle:
        """COCO run-length encoding, as pycocotools reads it."""
        return encode(self.mask)

    def to_json(self) -> dict[str, Any]:
        """Everything but the logits, in plain types."""
        return {
            "label": self.label,
            "score": float(self.score),
            "span": None if self.span is None else [int(place) for place in self.span],
            "box": None if self.box is None else [int(edge) for edge in self.box],
            "area": self.area,
            "rle": self.rle(),
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said and drew, masks in the order of the text."""

    text: str
    token_ids: list[int]  # the generated ids
    masks: Sequence[Mask]
    timing: dict[str, float]  # stage -> milliseconds

    def to_json(self) -> dict[str, Any]:
        """The answer in plain types; masks as RLE."""
        return {
            "text": self.text,
            "token_ids": [int(token) for token in self.token_ids],
            "masks": [mask.to_json() for mask in self.masks],
            "timing_ms": {stage: round(float(spent), 3) for stage, spent in self.timing.items()},
        }

    def files(self, image: str) -> dict[str, bytes]:
        """No files but the masks'; see `pixelrt.segmenter.Result`."""
        return {}


_CLAUSE_END = re.compile(r"[.,;:!?](?=\s|$)")  # not the point of "3.5 mm"
_LEADING = re.compile(r"^(?:(?:and|or)\b\s*)?(?:(?:the|an|a)\b\s*)?", re.IGNORECASE)
_TRAILING = re.compile(r"\s*\b(?:is|are)$", re.IGNORECASE)
_JOINER = re.compile(r"^[\s,]*(?:(?:and|or)\b)?\s*$", re.IGNORECASE)


def labelled_spans(text: str, marker: str = "[SEG]") -> list[tuple[str, tuple[int, int]]]:
    """(label, (start, end)) of each marker in `text`: the words it stands after, and where it is.

    "Sure, the red circle [SEG] and the blue star [SEG]." gives "red circle" and "blue star". Words count from
    the previous marker or the previous one of . , ; : ! ?; a leading "and" or "or", a leading article and a
    trailing "is" or "are" are left out. Markers with nothing, a comma or an "and" between them share a label.
    """
    found: list[tuple[str, tuple[int, int]]] = []
    after = 0
    for match in re.finditer(re.escape(marker), text):
        between = text[after : match.start()]
        if found and _JOINER.match(between):
            label = found[-1][0]
        else:
            label = _CLAUSE_END.split(between)[-1].strip()
            label = _TRAILING.sub("", _LEADING.sub("", label, count=1), count=1).strip()
        found.append((label, match.span()))
        after = match.end()
    return found
