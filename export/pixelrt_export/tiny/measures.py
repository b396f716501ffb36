"""The mean of an evaluation with its standard error. The measures themselves are the runtime's,
`pixelrt.evaluation.measures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_error(values: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Mean of (seed, value) pairs, and its standard error with the values of one seed as one cluster."""
    if not values:
        return None
    mean = sum(v for _, v in values) / len(values)
    residuals: dict[int, float] = {}
    for seed, v in values:
        residuals[seed] = residuals.get(seed, 0.0) + v - mean
    return round(mean, 4), round(math.sqrt(sum(r * r for r in residuals.values())) / len(values), 4)
