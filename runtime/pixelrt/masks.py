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


@dataclass(frozen=True)
class Decoding:
    """How the words came about."""

    forwards: int  # runs of the language model
    drafted: int  # tokens that were guessed, and read before the model had chosen them
    accepted: int  # of those, tokens that it chose

    @property
    def accept_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    def to_json(self) -> dict[str, Any]:
        rate = self.accept_rate
        return {
            "forwards": self.forwards,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "accept_rate": None if rate is None else round(rate, 4),
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said and drew, masks in the order of the text."""

    text: str
    token_ids: list[int]  # the generated ids
    masks: Sequence[Mask]
    timing: dict[str, float]  # stage -> ms, of this question alone; the picture's are in Frame.timing
    finished: bool = True  # False where the limit cut the answer off
    # (N, run, H) hidden states that the masks were drawn from, where a family has them: `pixelrt.tracking` draws
    # them in the next frames.
    targets: NDArray[np.floating[Any]] | None = None
    decoding: Decoding | None = None  # of a family that writes words

    def to_json(self) -> dict[str, Any]:
        """The answer in plain types; masks as RLE."""
        return {
            "text": self.text,
            "token_ids": [int(token) for token in self.token_ids],
            "finished": bool(self.finished),
            "masks": [mask.to_json() for mask in self.masks],
            "timing_ms": {stage: round(float(spent), 3) for stage, spent in self.timing.items()},
            **({"decoding": self.decoding.to_json()} if self.decoding else {}),
        }

    def files(self, image: str) -> dict[str, bytes]:
        """No files but the masks'; see `pixelrt.segmenter.Result`."""
        return {}


# Of two repetitions next to each other only one may take blanks: otherwise a run of them costs its square.
_CLAUSE_END = re.compile(r"[.,;:!?](?=\s|$)")  # not the point of "3.5 mm"
_LEADING = re.compile(r"^(?:(?:and|or)\b\s*)?(?:(?:the|an|a)\b\s*)?", re.IGNORECASE)
_TRAILING = re.compile(r"\b(?:is|are)$", re.IGNORECASE)
_JOINER = re.compile(r"^[\s,]*(?:(?:and|or)\b\s*)?$", re.IGNORECASE)


def label_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The words that each mask's marker stands after; `spans` are the markers' places in `text`, in order.

    "Sure, the red circle [SEG] and the blue star [SEG]." gives "red circle" and "blue star". Words count from
    the previous marker or the previous one of . , ; : ! ?; a leading "and" or "or", a leading article and a
    trailing "is" or "are" are left out. Markers with nothing, a comma or an "and" between them share a label.
    """
    labels: list[str] = []
    after = 0
    for start, end in spans:
        between = text[after:start]
        if labels and _JOINER.match(between):
            label = labels[-1]
        else:
            label = _CLAUSE_END.split(between)[-1].strip()
            label = _TRAILING.sub("", _LEADING.sub("", label, count=1), count=1).strip()
        labels.append(label)
        after = end
    return labels
