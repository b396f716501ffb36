"""A camera twice as fast as the pipeline for ten minutes: is memory flat, what comes out the newest, all counted?

    python -m benchmarks.pipeline BUNDLE [--minutes 10] [--every 0] [--deadline MS] [--prompt TEXT] [--json FILE]

First the pipeline is given pictures as fast as it takes them, for a tenth of the time: its sustainable rate. Then a
camera thread puts one of the sample pictures every half of that period, stamped with its number. `--every N` tracks
(docs/video.md), 0 asks about every frame. Ends with exit code 1 unless

- newest: no delivered picture was begun when a newer one had been put already (the clock is read after each `put`);
- counted: accepted = answered + late + failed + dropped + abandoned, no picture came twice or out of order, and there
  was no error but lateness;
- flat: resident memory, each second, has a mean in the last fifth of the run no more than --growth above that of the
  second fifth (the first is for warming up).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from pixelrt.bench.files import Files
from pixelrt.bench.machine import read_machine, read_versions
from pixelrt.delivery import Delivery, Late
from pixelrt.image import open_image
from pixelrt.pipeline import Pipeline
from pixelrt.tracking import Tracking

SAMPLES = Path(__file__).resolve().parents[1] / "calib_data"
PROMPTS = {"pixellm": "Segment the red circle and the blue star.", "psalm": "the blue star"}
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Run:
    """What was seen from outside while a camera fed the pipeline. Arrays of numbers: notes are no leak."""

    put_by: array[float] = field(default_factory=lambda: array("d"))  # when `put` of each picture returned
    tags: array[int] = field(default_factory=lambda: array("q"))  # of what came out, in order
    begun: array[float] = field(default_factory=lambda: array("d"))
    latency_ms: array[float] = field(default_factory=lambda: array("d"))
    errors: set[str] = field(default_factory=set)  # but for pictures that were late
    resident: list[int] = field(default_factory=list)  # bytes, a second apart
    account: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, delivery: Delivery) -> None:
        self.tags.append(delivery.tag)
        self.begun.append(delivery.begun_s)
        self.latency_ms.append(delivery.latency_ms)
        if delivery.error is not None and not isinstance(delivery.error, Late):
            self.errors.add(repr(delivery.error))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def run(pipeline: Pipeline, pictures: list[Any], seconds: float, period_s: float | None) -> Run:
    """period_s: of the camera; None: as fast as they are taken, none dropped."""
    seen, start = Run(), time.monotonic()

    def feed() -> None:
        number = 0
        while (now := time.monotonic()) < start + seconds:
            if period_s is not None and (early := start + number * period_s - now) > 0:
                time.sleep(early)
            pipeline.put(pictures[number % len(pictures)], number, wait=period_s is None)
            seen.put_by.append(time.monotonic())
            number += 1
        pipeline.close(drain=True)

    def watch() -> None:
        while not over.wait(1.0):
            seen.resident.append(resident())

    over = threading.Event()
    threads = [threading.Thread(target=feed), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    with pipeline:
        for delivery in pipeline:
            seen.take(delivery)
    over.set()
    for thread in threads:
        thread.join()
    names = ("accepted", "answered", "late", "failed", "dropped", "abandoned")
    seen.account = {name: getattr(pipeline, name) for name in names}
    seen.seconds = time.monotonic() - start
    return seen


def stale(seen: Run) -> int:
    """Pictures that came out and had been begun after a newer one was put."""
    pairs = zip(seen.tags, seen.begun, strict=True)
    return sum(begun > seen.put_by[tag + 1] for tag, begun in pairs if tag + 1 < len(seen.put_by))


def accounted(seen: Run) -> bool:
    accepted, *others = seen.account.values()
    delivered = sum(seen.account[name] for name in ("answered", "late", "failed"))
    tags = list(seen.tags)
    return (
        accepted == sum(others) == len(seen.put_by) and len(tags) == delivered and tags == sorted(set(tags))
    )


def growth(resident_bytes: list[int]) -> float:
    """Of the mean of the last fifth over that of the second."""
    fifth = max(1, len(resident_bytes) // 5)
    second, last = np.mean(resident_bytes[fifth : 2 * fifth]), np.mean(resident_bytes[-fifth:])
    return float(last / second - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--deadline", type=float, metavar="MS")
    parser.add_argument("--prompt")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--growth", type=float, default=0.01, help="of memory, that still is flat")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    segmenter = pixelrt.load(args.bundle, backend=args.backend)
    prompt = args.prompt or PROMPTS[segmenter.bundle.manifest["family"]]
    pictures = [open_image(file) for file in sorted(SAMPLES.glob("scene_*.png"))]
    task: Callable[[], Any] = (
        (lambda: Tracking(segmenter, prompt, args.every)) if args.every else lambda: prompt
    )
    seconds = 60 * args.minutes
    free = run(Pipeline(segmenter, task()), pictures, seconds / 10, None)
    rate = free.account["answered"] / free.seconds
    print(f"sustainable: {rate:.2f} pictures a second ({free.account['answered']} in {free.seconds:.0f} s)")
    pipeline = Pipeline(segmenter, task(), args.deadline)
    seen = run(pipeline, pictures, seconds, 1 / (2 * rate))
    checks = {
        "newest": stale(seen) == 0,
        "counted": accounted(seen),
        "flat": growth(seen.resident) <= args.growth,
    }
    facts: dict[str, Any] = {
        "put, a second": round(len(seen.put_by) / seen.seconds, 2),
        "delivered, a second": round(len(seen.tags) / seen.seconds, 2),
        **seen.account,
        "begun after a newer one was put": stale(seen),
        "latency, ms: p50, p99, most": [
            round(float(np.percentile(seen.latency_ms, p)), 1) for p in (50, 99, 100)
        ],
        "resident, MB: first, last, most": [
            round(m / 1e6, 1) for m in (seen.resident[0], seen.resident[-1], max(seen.resident))
        ],
        "errors": sorted(seen.errors) or "none",
        "growth of memory": f"{growth(seen.resident):+.2%}",
        **{name: "yes" if good else "NO" for name, good in checks.items()},
    }
    print(
        f"{args.bundle.name}, {segmenter.backend}, {seen.seconds / 60:.1f} min at twice that\n\n| | |\n|---|---|"
    )
    for name, value in facts.items():
        print(f"| {name} | {', '.join(map(str, value)) if isinstance(value, list) else value} |")
    if args.json:
        about = {
            "bundle": args.bundle.name,
            "backend": segmenter.backend,
            "prompt": prompt,
            "every": args.every,
        }
        about |= {"machine": read_machine(Files()), "versions": read_versions(), "minutes": args.minutes}
        args.json.write_text(json.dumps({**about, "sustainable": rate, **facts}, indent=1) + "\n")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
