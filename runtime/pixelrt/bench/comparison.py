"""Whether one measurement is slower than another, stage by stage; and whether the two can be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.record import Record
from pixelrt.bench.samples import STAGES
from pixelrt.bench.statistics import ROUNDS_MIN, Ratio, ratio_of
from pixelrt.errors import InputError

COMPARED = (*STAGES, "total")
SHARE_MIN = 0.01  # of the answer; below it a stage is shown, not judged
SHORTEST_MS = 1e-3  # the clock's own noise; a ratio of less says nothing
KINDS = ("hardware", "inputs", "bundles")


@dataclass(frozen=True)
class StageChange:
    """Times in ms: medians of each question that has the stage, their geometric mean.

    ratio: None where it is not judged, `why` says why.
    """

    stage: str
    first_ms: float | None
    second_ms: float | None
    ratio: Ratio | None
    why: str = ""

    def fails(self, limit: float) -> bool:
        """limit: 0.05 is 5 % slower."""
        return self.ratio is not None and self.ratio.low > 1 + limit

    @property
    def words(self) -> str:
        if self.ratio is None:
            return self.why
        if self.ratio.low > 1:
            return "slower"
        return "faster" if self.ratio.high < 1 else "no change"


@dataclass(frozen=True)
class Comparison:
    """differences: (kind, sentence); a kind of KINDS, or `note` for what may be compared, but should be known."""

    first: Record
    second: Record
    paired: bool
    differences: list[tuple[str, str]]
    stages: list[StageChange]

    def failed(self, limit: float) -> list[StageChange]:
        return [change for change in self.stages if change.fails(limit)]


def compare(first: Record, second: Record, allowed: Sequence[str] = ()) -> Comparison:
    """second against first. Raises InputError where they differ in a kind that is not `allowed`, or are too short."""
    differences = differences_of(first, second)
    refused = [(kind, what) for kind, what in differences if kind in KINDS and kind not in allowed]
    if refused:
        kinds = sorted({kind for kind, _ in refused})
        raise InputError(
            f"The two measurements cannot be compared: {'; '.join(what for _, what in refused)}. "
            f"If that is meant: {' '.join(f'--across {kind}' for kind in kinds)}"
        )
    for record in (first, second):
        if len(record.table("total")) < ROUNDS_MIN:
            raise InputError(
                f"{record.title} was measured in {len(record.table('total'))} rounds; a comparison takes "
                f"{ROUNDS_MIN} or more. Run pixelrt bench with --iterations 10."
            )
    paired = first.about["run"] == second.about["run"] and len(first.rounds) == len(second.rounds)
    tables = {name: _common(first, second, name) for name in COMPARED}
    shares = {name: _share(first, second, name, tables[name]) for name in COMPARED}
    judged = [name for name in COMPARED if shares[name] >= SHARE_MIN]
    changes = []
    for name in COMPARED:
        here = [name in record.columns for record in (first, second)]
        if not any(here):
            continue
        one, two = (_median(table) for table in tables[name])
        if not all(here) or one is None or two is None:
            changes.append(StageChange(name, one, two, None, "in one of the two only"))
        elif name not in judged:
            changes.append(StageChange(name, one, two, None, f"under {100 * SHARE_MIN:.0f} % of the answer"))
        else:
            ratio = ratio_of(*tables[name], paired=paired, intervals=len(judged))
            changes.append(StageChange(name, one, two, ratio))
    return Comparison(first, second, paired, differences, changes)


def differences_of(first: Record, second: Record) -> list[tuple[str, str]]:
    """What differs beside the times; empty for two measurements of the same."""
    one, two = first.about, second.about
    found: list[tuple[str, str]] = []

    def told(kind: str, what: str, a: object, b: object) -> None:
        if a != b:
            found.append((kind, f"{what}: {_words(a)} and {_words(b)}"))

    for key, what in (("cpu", "processors"), ("cores", "cores"), ("module", "modules"), ("l4t", "L4T")):
        told("hardware", what, one["machine"][key], two["machine"][key])
    gpus = [[gpu["name"] for gpu in about["machine"]["gpus"]] for about in (one, two)]
    told("hardware", "GPUs", *gpus)
    told("hardware", "power modes", one["before"]["power_mode"], two["before"]["power_mode"])
    told("hardware", "OMP_NUM_THREADS", one["machine"]["threads"], two["machine"]["threads"])
    asked = [[question["sha256"] for question in about["questions"]] for about in (one, two)]
    if asked[0] != asked[1]:
        found.append(("inputs", "other pictures or questions were asked"))
    told("bundles", "bundles", *(f"{a['bundle']['name']} {a['bundle']['sha256'][:12]}" for a in (one, two)))
    told("inputs", "--max-new-tokens", *(about["settings"]["max-new-tokens"] for about in (one, two)))
    told("note", "backends", one["backend"], two["backend"])
    told("note", "bundles measured in turn", one["interleaved"], two["interleaved"])
    for package in sorted({*one["versions"], *two["versions"]}):
        told("note", package, *(about["versions"].get(package) for about in (one, two)))
    if asked[0] == asked[1]:
        pairs = list(zip(one["questions"], two["questions"], strict=True))
        other = sum(a["answer_sha256"] != b["answer_sha256"] for a, b in pairs)
        if other:
            found.append(("note", f"{other} of {len(pairs)} questions were answered otherwise"))
    for which, about in (("first", one), ("second", two)):
        if about["throttling"]["seen"]:
            signs = ", ".join(about["throttling"]["signs"])
            found.append(("note", f"the machine was throttled during the {which}: {signs}"))
    return found


def _common(first: Record, second: Record, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rounds x questions of both, of the questions that have this stage in every round of both, by their order.

    With other inputs the questions are no pairs: then each row is one median over the questions.
    """
    tables = [
        np.full((1, 1), np.nan) if name not in record.columns else record.table(name)
        for record in (first, second)
    ]
    same = [question["sha256"] for question in first.about["questions"]] == [
        question["sha256"] for question in second.about["questions"]
    ]
    if same and tables[0].shape[1] == tables[1].shape[1]:
        whole = np.isfinite(tables[0]).all(axis=0) & np.isfinite(tables[1]).all(axis=0)
        kept = [table[:, whole] for table in tables]
    else:
        kept = [table[:, np.isfinite(table).all(axis=0)] for table in tables]
        kept = [np.median(table, axis=1, keepdims=True) if table.shape[1] else table for table in kept]
    return np.maximum(kept[0], SHORTEST_MS), np.maximum(kept[1], SHORTEST_MS)


def _share(
    first: Record, second: Record, name: str, tables: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> float:
    """The larger of the two shares of the answer's time; 0 where no question has the stage in both."""
    if not all(table.size for table in tables):
        return 0.0
    return max(
        float(np.median(table) / np.median(record.columns["total"]))
        for record, table in zip((first, second), tables, strict=True)
    )


def _median(table: NDArray[np.float64]) -> float | None:
    return float(np.exp(np.log(np.median(table, axis=0)).mean())) if table.size else None


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)
