"""What one question to a model gave, as both families' examinations report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pixelrt.evaluation.measures import Counts, iou, overlap, union_of


@dataclass(frozen=True)
class Record:
    """scores: measure -> one value an observation. Masks (N, H, W) bool; `image` may show marks of the prompt.

    goodness: 0..1, by which failures are chosen. counts: of panoptic quality. spoken: the answer has words to judge.
    """

    group: str
    seed: int
    kind: str
    prompt: str
    image: np.ndarray
    wanted: Sequence[np.ndarray]
    got: Sequence[np.ndarray]
    scores: Mapping[str, Sequence[float]]
    goodness: float
    wanted_text: str = ""
    got_text: str = ""
    counts: Counts | None = None
    ids: Sequence[int] = field(default=())

    def overlap(self) -> tuple[int, int]:
        """Pixels in both unions of masks, and in either."""
        size = self.image.shape[:2]
        want, got = union_of(self.wanted, size), union_of(self.got, size)
        return overlap(want, got)


def paired_ious(wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> list[float]:
    """In order; a missing or surplus mask counts 0."""
    ious = [iou(a, b) for a, b in zip(wanted, got, strict=False)]
    return ious + [0.0] * (max(len(wanted), len(got)) - len(ious))
