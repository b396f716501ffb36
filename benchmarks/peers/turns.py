"""Several ways of doing one thing, timed in turn, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pixelrt.bench.files import Files
from pixelrt.bench.machine import read_machine, read_versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
REST = 0.05  # s; ONNX Runtime's idle threads spin for a few ms after a run
Times = dict[str, float]  # what was timed -> seconds


def in_turn(
    ways: Mapping[str, Callable[[], Times]], rounds: int, minutes: float = math.inf
) -> dict[str, list[Times]]:
    """Each way once a round, the first one another one each round. Nothing is warmed up: call the ways before.

    minutes: no round is begun that would end later if it took as long as the longest so far; one is always made.
    """
    found: dict[str, list[Times]] = {name: [] for name in ways}
    names, begun, longest = list(ways), time.monotonic(), 0.0
    for number in range(rounds):
        start = time.monotonic()
        if number and start - begun + longest > 60 * minutes:
            print(f"{number} of {rounds} rounds: {minutes:g} minutes are over", flush=True)
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(ways[name]())
            time.sleep(REST)
        longest = max(longest, time.monotonic() - start)
        print(f"round {number + 1} of {rounds}: {time.monotonic() - start:.0f} s", flush=True)
    return found


@dataclass(frozen=True)
class Ratio:
    """Of times measured in the same rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    each = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def said(seconds: Sequence[float]) -> str:
    """Median and range in ms, or in s from 10 s on."""
    unit, factor = ("s", 1.0) if statistics.median(seconds) >= 10 else ("ms", 1e3)
    low, middle, high = (factor * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.1f} {unit} ({low:.1f} to {high:.1f})"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


def about(*packages: str) -> dict[str, Any]:
    """The machine, its load when asked, and the versions of what is compared. No names of hosts or users."""
    machine = read_machine(Files())
    versions = read_versions()
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    load = (Files().read("/proc/loadavg") or "").split()
    return {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "load_average_before": float(load[0]) if load else None,
        "versions": versions,
    }


def written(document: Mapping[str, Any], path: Path | None) -> None:
    """As JSON, where a path is given."""
    if path is not None:
        text = json.dumps(document, indent=1, default=asdict) + "\n"
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")
