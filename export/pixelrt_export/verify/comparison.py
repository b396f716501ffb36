"""How far apart two tensors are, and how far they may be.

error = |a - b| / |b|  (b the original's; infinite where shapes differ or a value is not finite)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Of a whole stage's outputs, by the precision of its weights. Between the largest error that sound bundles of both
# families show and the smallest that a fault of one tensor makes (tests/export/test_seeded_faults.py has both).
STAGE_LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.15, "int4": 0.3, "nf4": 0.3}
# Of what one layer adds to its input, when it gets the same input.
LAYER_LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.15, "int4": 0.3, "nf4": 0.3}
# Of a stored tensor as a whole, and of its worst tile: rounding alone. Nearest steps in blocks of 32 are off by 0.09
# and 0.10, calibrated ones by up to 0.15 and 0.27 (they trade one weight for another); one step too many is 0.3.
STORED_LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.05, "int4": 0.25, "nf4": 0.25}
TILE_LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.1, "int4": 0.5, "nf4": 0.5}
# Of a row's two largest logits, with a shortlist against the whole head: other sums of the same products, 1e-6; those
# of 8 bits alone are off by 2e-3.
BEST_LIMIT = 1e-4
# What the runtime does itself. Pictures: the same integers, normalised in fp32. Tokens: the table is stored in 16 bits
# where that was asked for. Masks: pixels on an edge, whose logit rounds to the other side of 0.
PICTURE_LIMIT, TOKENS_LIMIT, MASKS_LIMIT = 1e-5, 1e-3, 2e-3
SLAB = 1 << 22  # values


@dataclass(frozen=True)
class Finding:
    """One comparison. where: stage, and in it what; limit: the error that would be a fault."""

    stage: str
    where: str
    error: float
    cosine: float
    limit: float
    question: int

    @property
    def passed(self) -> bool:
        return self.error <= self.limit

    def to_json(self) -> dict[str, Any]:
        error = self.error if math.isfinite(self.error) else None
        return asdict(self) | {"error": error, "passed": self.passed}


def relative_error(a: np.ndarray, b: np.ndarray, scale: np.ndarray | None = None) -> float:
    """scale: whose size the difference is measured by, b itself by default."""
    if a.shape != b.shape:
        return math.inf
    size = difference = 0.0
    for x, y in slabs(a, b):
        size += float(np.square(y).sum())
        difference += float(np.square(x - y).sum())
    if scale is not None:
        size = float(np.square(scale, dtype=np.float64).sum())
    if not math.isfinite(difference):
        return math.inf
    return math.sqrt(difference / size) if size else (0.0 if difference == 0 else math.inf)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return 0.0
    inner = first = second = 0.0
    same = True
    for x, y in slabs(a, b):
        inner, first, second = inner + float(x @ y), first + float(x @ x), second + float(y @ y)
        same = same and np.array_equal(x, y)
    product = math.sqrt(first) * math.sqrt(second) if math.isfinite(first + second) else math.nan
    value = inner / product if product else float(same)
    return value if math.isfinite(value) else 0.0


def slabs(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both in float64, flat, a few rows at a time: a head of 131 million values would else take 1 GB each."""
    if a.ndim == 0:
        a, b = a[None], b[None]
    step = max(1, SLAB // max(1, a[:1].size))
    for at in range(0, len(a), step):
        yield tuple(np.asarray(x[at : at + step], np.float64).ravel() for x in (a, b))  # type: ignore[misc]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks; two empty ones agree."""
    if a.shape != b.shape:
        return 0.0
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0
