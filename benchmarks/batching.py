"""Several questions one by one against `segment_batch`: time, passes of the language model, and whether all is equal.

    python -m benchmarks.batching BUNDLE [--sizes 2 4 8] [--rounds 7] [--backend NAME] [--json FILE]

Two shapes: SIZE questions about one picture, and one question about SIZE pictures, of the small models' held-out
scenes (with another bundle the words are the same and the answers nonsense). Pictures are encoded anew in each round,
and nothing is learnt from answers, so that every round does the same. The two ways alternate within a round; reported
are medians of the rounds, the first not counted, and the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from pixelrt.queries import Refer
from pixelrt_export.tiny.evaluate import SEED_BASE
from pixelrt_export.tiny.pixellm_exam import questions_about
from pixelrt_export.tiny.scenes import scene

LONG_SIDE = 140  # px
MAX_NEW_TOKENS = 160


def pictures(count: int) -> list[Any]:
    return [scene(SEED_BASE + i, LONG_SIDE).image for i in range(count)]


def prompts(family: str, count: int) -> list[Any]:
    """The questions of several scenes, asked about any."""
    found = (
        asked.text for i in range(count) for asked in questions_about(scene(SEED_BASE + i, LONG_SIDE), i)
    )
    words = list(islice(dict.fromkeys(found), count))
    return [Refer(text) for text in words] if family == "psalm" else words


def one_by_one(seg: Any, images: Sequence[Any], asked: Sequence[Any]) -> list[Any]:
    frames = [seg.encode(image) for image in images]
    pairs = (
        zip(frames * len(asked), asked, strict=True) if len(frames) == 1 else zip(frames, asked, strict=True)
    )
    return [seg.segment(frame, prompt, MAX_NEW_TOKENS) for frame, prompt in pairs]


def together(seg: Any, images: Sequence[Any], asked: Sequence[Any]) -> list[Any]:
    return list(seg.segment_batch(list(images), list(asked), MAX_NEW_TOKENS))


def differences(answers: Sequence[Any], alone: Sequence[Any]) -> tuple[int, int]:
    """Answers with other words or another number of masks; pixels that differ in the others."""
    others = pixels = 0
    for answer, wanted in zip(answers, alone, strict=True):
        if answer.text != wanted.text or len(answer.masks) != len(wanted.masks):
            others += 1
            continue
        pixels += sum(
            int(np.count_nonzero(a.mask != b.mask)) for a, b in zip(answer.masks, wanted.masks, strict=True)
        )
    return others, pixels


def measured(seg: Any, images: Sequence[Any], asked: Sequence[Any], rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"alone": [], "together": []}
    answers: dict[str, list[Any]] = {}
    ways = {"alone": one_by_one, "together": together}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            start = time.perf_counter()
            answers[name] = ways[name](seg, images, asked)
            if number:
                spent[name].append(time.perf_counter() - start)
    others, pixels = differences(answers["together"], answers["alone"])
    passes = {
        name: [answer.decoding.forwards for answer in found if getattr(answer, "decoding", None)]
        for name, found in answers.items()
    }
    return {
        "pictures": len(images),
        "questions": len(asked),
        "alone_s": statistics.median(spent["alone"]),
        "together_s": statistics.median(spent["together"]),
        "ratio": statistics.median(t / a for t, a in zip(spent["together"], spent["alone"], strict=True)),
        "passes_alone": sum(passes["alone"]) or None,
        # The longest answer's; fewer questions were read together where there was no room for all.
        "passes_together": max(passes["together"], default=None),
        "other_answers": others,
        "pixels_different": pixels,
        "rounds": spent,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| pictures | questions | one by one | together | ratio | language passes | other answers | pixels different |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        passes = f"{row['passes_alone']} → {row['passes_together']}" if row["passes_alone"] else "–"
        lines.append(
            f"| {row['pictures']} | {row['questions']} | {1e3 * row['alone_s']:.0f} ms | "
            f"{1e3 * row['together_s']:.0f} ms | {row['ratio']:.2f} | {passes} | {row['other_answers']} | "
            f"{row['pixels_different']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seg: Any = pixelrt.load(options.bundle, options.backend)
    if getattr(seg, "drafts", None):
        seg.drafts.learning = False
    family = seg.bundle.manifest["family"]
    rows = []
    for size in options.sizes:
        asked = prompts(family, size)
        rows.append(measured(seg, pictures(1), asked, options.rounds))
        rows.append(measured(seg, pictures(size), asked[:1] * size, options.rounds))
    print(f"{options.bundle}: {seg.backend}, {options.rounds} rounds")
    print(table(rows))
    if options.json:
        about = {"machine": platform.processor() or platform.machine(), "backend": seg.backend}
        document = {**about, "bundle": seg.bundle.manifest["name"], "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
