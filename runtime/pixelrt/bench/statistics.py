"""What can be said of measured times: percentiles, and the ratio of two measurements with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Percentile -> samples it takes before one of them lies beyond it
NEEDED = {50: 1, 90: 10, 95: 20, 99: 100}
ROUNDS_MIN = 10  # with fewer, resampling sees too little of what varies: false alarms (docs/benchmarking.md)
DRAWS = 2000
AT_ONCE = 1 << 21  # numbers drawn at a time
CONFIDENCE = 0.95  # of all intervals of a comparison together

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """In the unit of the values. std: of a sample (n - 1). A percentile that n is too small for is None."""

    n: int
    mean: float
    std: float | None
    percentiles: dict[int, float | None]


def summarise(values: Sequence[float] | Floats) -> Summary:
    """values: at least one. Percentiles lie between samples in proportion (numpy's `linear`)."""
    array = np.asarray(values, np.float64)
    found = {p: float(np.percentile(array, p)) if len(array) >= need else None for p, need in NEEDED.items()}
    std = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(len(array), float(array.mean()), std, found)


@dataclass(frozen=True)
class Ratio:
    """Second time over first: above 1 is slower."""

    value: float
    low: float
    high: float


def ratio_of(first: Floats, second: Floats, *, paired: bool, intervals: int = 1, seed: int = 0) -> Ratio:
    """Second over first: the medians of each question, their ratios, the geometric mean over the questions.

    first (R, Q), second (S, Q): times by round and question. A bootstrap draws whole rounds, for what happens on a
    machine happens to all of a round. paired: both were measured in turn in one run (R = S), so the same rounds are
    drawn of both. intervals: how many there are in the comparison; each is widened so that all hold together
    with probability CONFIDENCE (Bonferroni). Raises ValueError for fewer than ROUNDS_MIN rounds.
    """
    if min(len(first), len(second)) < ROUNDS_MIN or (paired and len(first) != len(second)):
        raise ValueError(f"{len(first)} and {len(second)} rounds")
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    step = max(1, AT_ONCE // (max(len(first), len(second)) * first.shape[1]))
    for start in range(0, DRAWS, step):
        count = min(step, DRAWS - start)
        rows = rng.integers(len(first), size=(count, len(first)))
        others = rows if paired else rng.integers(len(second), size=(count, len(second)))
        drawn[start : start + count] = _ratios(first.T[:, rows], second.T[:, others])
    tail = (1 - CONFIDENCE) / 2 / intervals
    # Resampled medians of few rounds vary too little: by the factor of a sample's variance.
    few = min(len(first), len(second))
    widen = math.sqrt(few / (few - 1))
    value = float(_ratios(first.T[:, None], second.T[:, None])[0])
    low, high = (float(x) for x in np.quantile(np.log(drawn), [tail, 1 - tail]))
    centre = math.log(value)
    return Ratio(
        value,
        math.exp(min(centre, centre + widen * (low - centre))),
        math.exp(max(centre, centre + widen * (high - centre))),
    )


def _ratios(first: Floats, second: Floats) -> Floats:
    """(N,) of (Q, N, R) and (Q, N, S)."""
    logs = np.log(np.median(second, axis=-1)) - np.log(np.median(first, axis=-1))
    return np.asarray(np.exp(logs.mean(axis=0)), np.float64)
