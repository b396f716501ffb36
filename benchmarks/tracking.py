"""What tracking costs in IoU and saves in time, against asking about every frame, on generated videos.

    python -m benchmarks.tracking BUNDLE [--clips 100] [--frames 60] [--every 2 5 10 30] [--drift 0.5] [--json FILE]

BUNDLE is one of this repository's small models. A video shows two to five things that drift, turn, hide each other,
leave and come in; `--frames` of them make the way of eight frames that PSALM is trained on. Its seeds are held out.
What is asked: one name of the first frame's things, and (PixelLM) two; the truth of a frame is all that bears them.

IoU: of all masks of a frame together with all that is true, a mean over frames; nothing for nothing counts 1.
Cost: what asking about every frame has more of it, frame by frame; both with the standard error, where the frames of
one video are one cluster. Questions: of 100 frames. ms: of a frame, encoder and all, the videos gone through by each
way in turn. The rows "never" are not asked again for drifting: they show how far an answer carries.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from pixelrt.bench.files import Files
from pixelrt.bench.machine import read_machine, read_versions
from pixelrt.evaluation.measures import iou, union_of
from pixelrt.queries import Query, Refer
from pixelrt.tracking import Tracking
from pixelrt_export.tiny.clips import FRAMES, Clip, clip
from pixelrt_export.tiny.evaluate import LONG_SIDES, SEED_BASE
from pixelrt_export.tiny.measures import mean_and_error
from pixelrt_export.tiny.questions import named, pair
from pixelrt_export.tiny.things import Scene, Thing

MAX_NEW_TOKENS = 96


@dataclass
class Way:
    """every 1: asking about every frame."""

    every: int
    drift: float
    values: list[tuple[int, float]] = field(default_factory=list)  # seed, IoU of each frame
    questions: int = 0
    seconds: list[float] = field(default_factory=list)  # of each frame

    @property
    def name(self) -> str:
        return "1 (every frame)" if self.every == 1 else str(self.every)


def asked(film: Clip, seed: int, family: str) -> Iterator[tuple[str | Query, set[str]]]:
    """Prompts, and the names of what they ask for."""
    things: Sequence[Thing] = film.tracked()
    one = named(things, random.Random(f"{seed} named"))
    names = {target.name for target in one.targets}
    if family == "psalm":
        yield Refer(f"the {next(iter(names))}", several=True, none_below=0.5), names
        return
    yield one.text, names
    two = pair(things, random.Random(f"{seed} pair"))
    both = {target.name for target in two.targets}
    if len(both) == 2:  # the other pairs name something that is not there
        yield two.text, both


def score(shown: Scene, names: set[str], masks: Sequence[np.ndarray]) -> float:
    wanted = [shown.mask(thing) for thing in shown.things if thing.name in names]
    size = shown.labels.shape
    return iou(union_of(wanted, size), union_of(masks, size))


def follow(
    segmenter: pixelrt.Segmenter, way: Way, film: Clip, seed: int, prompt: str | Query, names: set[str]
) -> None:
    tracking = Tracking(segmenter, prompt, way.every, way.drift, MAX_NEW_TOKENS)
    for shown in film.frames:
        start = time.perf_counter()
        masks = [mask.mask for mask in tracking.step(shown.image).masks]
        way.seconds.append(time.perf_counter() - start)
        way.values.append((seed, score(shown, names, masks)))
    way.questions += tracking.questions


def rows_of(ways: Sequence[Way]) -> list[dict[str, Any]]:
    base, rows = ways[0], []
    for way in ways:
        cost = [(seed, a - b) for (seed, a), (_, b) in zip(base.values, way.values, strict=True)]
        rows.append(
            {
                "every": way.every,
                "drift": way.drift,
                "iou": mean_and_error(way.values),
                "cost": mean_and_error(cost),
                "questions": round(100 * way.questions / len(way.values), 1),
                "ms_mean": round(1e3 * float(np.mean(way.seconds)), 2),
                "ms_p95": round(1e3 * float(np.percentile(way.seconds, 95)), 2),
            }
        )
    return rows


def table(ways: Sequence[Way]) -> str:
    lines = [
        "| asked every … frames | again for drift below | questions | mean IoU | cost in IoU | ms a frame | p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, row in zip(ways, rows_of(ways), strict=True):
        value, cost = ("{:.3f} ± {:.3f}".format(*row[key]) for key in ("iou", "cost"))
        first = way.every == 1
        cells = [way.name, "–" if first else way.drift or "never", row["questions"], value]
        cells += ["–" if first else cost, f"{row['ms_mean']:.1f}", f"{row['ms_p95']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, default=60, help="of a video")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 5, 10, 30])
    parser.add_argument("--drift", type=float, nargs="+", default=[0.5, 0.0])
    parser.add_argument("--long-side", type=int, help="of the frames, in pixels (default: as trained)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    segmenter = pixelrt.load(args.bundle, backend=args.backend)
    family = segmenter.bundle.manifest["family"]
    ways = [Way(1, 0.0), *(Way(every, drift) for drift in args.drift for every in args.every)]
    said = time.monotonic()
    for number in range(args.clips):
        seed = SEED_BASE + number
        film = clip(seed, args.long_side or LONG_SIDES[family], frames=args.frames, pace=FRAMES / args.frames)
        for prompt, names in asked(film, seed, family):
            if number == 0:
                follow(segmenter, Way(2, 0.0), film, seed, prompt, names)  # so that all graphs are warm
            for turn in range(len(ways)):  # each way is the first one now and then
                follow(segmenter, ways[(turn + number) % len(ways)], film, seed, prompt, names)
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"{number + 1} of {args.clips} videos", flush=True)
    frames = len(ways[0].values)
    print(
        f"{args.bundle.name}, {args.clips} videos of {args.frames} frames, {frames} frames with a question\n"
    )
    print(table(ways))
    if args.json:
        about = {
            "bundle": args.bundle.name,
            "backend": segmenter.backend,
            "clips": args.clips,
            "frames": args.frames,
            "machine": read_machine(Files()),
            "versions": read_versions(),
        }
        args.json.write_text(json.dumps({**about, "ways": rows_of(ways)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
