"""How soon the first mask of several is there: `stream` against `segment`, same bundle, one interleaved run.

    python -m benchmarks.stream BUNDLE [--targets 4] [--rounds 7] [--image FILE] [--backend NAME] [--json FILE]

The answer's words are given ("Sure, the first thing [SEG], the second thing [SEG], ..."), so that every bundle draws
the same number of masks, one with random weights too; all the work is done as ever. Measured after the prefill, which
is over when the first run of the language graph is: the time to the first mask and to the whole answer. The first is
to come within 40 % of the second for four targets. Reported are medians; the first round is not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.backends import open_backend
from pixelrt.bench.stopwatch import TimedBackend
from pixelrt.bundle import Bundle
from pixelrt.engine import Engine, Joined, Value
from pixelrt.families.pixellm import PixelLM
from pixelrt.masks import Mask
from pixelrt.segmenter import Frame, open_bundle

QUESTION = "Segment these things."
NAMES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
WANTED = 0.4
PICTURE = Path(__file__).resolve().parents[1] / "calib_data" / "scene_01.png"


class Told:
    """The language graph with other logits: they choose the tokens of a given answer."""

    def __init__(self, engine: Engine, first: int, answer: Sequence[int]) -> None:
        """first: position of the answer's first token."""
        self.engine, self.file, self.memory = engine, engine.file, engine.memory
        self.first, self.answer = first, answer

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        outputs = self.engine(inputs, into)
        positions = np.asarray(inputs["position_ids"])[0][np.asarray(inputs["logit_rows"])]
        logits = np.zeros(outputs["logits"].shape, np.float32)
        for row, position in enumerate(positions - self.first + 1):
            logits[0, row, self.answer[min(max(position, 0), len(self.answer) - 1)]] = 1
        return {**outputs, "logits": logits}


def told(seg: PixelLM, targets: int) -> PixelLM:
    """A twin that answers QUESTION with so many targets, reading one word after the other."""
    answer: list[int] = []
    for number, name in enumerate(NAMES[:targets]):
        words = f"{'Sure' if not number else ''}, the {name} thing"
        answer += [*seg.prompt.tokenizer.encode(words, add_special_tokens=False).ids, *seg.codebook.ids]
    twin: Any = copy.copy(seg)
    first = len(seg.check(QUESTION)) - 1 + seg.bundle.manifest["tokens"]["image_tokens"]
    twin._language = Told(seg._language, first, [*answer, seg.eos])
    twin.drafts = twin.prefixes = None  # which know another engine
    return twin


def streamed(seg: PixelLM, frame: Frame, backend: TimedBackend) -> dict[str, float]:
    """Seconds after the prefill."""
    backend.take()
    masks, done = [], 0.0
    for piece in seg.stream(frame, QUESTION):
        done = time.perf_counter()
        if isinstance(piece, Mask):
            masks.append(done)
    prefill = next(call for call in backend.take() if call.graph == "language").stop
    return {"first": masks[0] - prefill, "all": done - prefill, "masks": len(masks)}


def whole(seg: PixelLM, frame: Frame, backend: TimedBackend) -> float:
    """Seconds after the prefill."""
    backend.take()
    seg.segment(frame, QUESTION)
    done = time.perf_counter()
    return done - next(call for call in backend.take() if call.graph == "language").stop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--targets", type=int, default=4, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image", type=Path, default=PICTURE)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = Bundle.read(options.bundle)
    backend = TimedBackend(open_backend(bundle, options.backend))
    seg = open_bundle(bundle, backend)
    if not isinstance(seg, PixelLM):
        parser.error(f"{options.bundle} draws all masks at once; give a PixelLM bundle")
    twin = told(seg, options.targets)
    frame = twin.encode(options.image)
    rounds = []
    for number in range(options.rounds + 1):
        ways = [lambda: streamed(twin, frame, backend), lambda: {"segment": whole(twin, frame, backend)}]
        found: dict[str, float] = {}
        for way in ways if number % 2 else ways[::-1]:
            found |= way()
        assert found["masks"] == options.targets
        rounds += [found] if number else []
    middle = {name: statistics.median(each[name] for each in rounds) for name in ("first", "all", "segment")}
    share = statistics.median(each["first"] / each["all"] for each in rounds)
    slower = statistics.median(each["all"] / each["segment"] for each in rounds)
    print(
        f"{options.bundle}: {options.targets} targets, {backend.name}, {options.rounds} rounds, after the prefill"
    )
    print(
        f"first mask {1e3 * middle['first']:.1f} ms, whole answer {1e3 * middle['all']:.1f} ms: {share:.0%}",
        end="",
    )
    print(f" (wanted: at most {WANTED:.0%})")
    print(f"segment {1e3 * middle['segment']:.1f} ms: the stream takes {slower:.2f} times as long")
    if options.json:
        about = {"machine": platform.processor() or platform.machine(), "backend": backend.name}
        document = {**about, "targets": options.targets, "rounds": rounds, "share": share, "slower": slower}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
