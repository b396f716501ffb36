"""The sample pictures, questions and class list of `calib_data/`: scenes of seeds that training never draws.

python -m pixelrt_export.tiny.samples --out calib_data

The questions in words are chosen by hand. Those for a PSALM follow from the scene: one of KINDS a picture, in turn.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelrt_export.tiny.psalm_prompts import NAMES, expressions
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import Scene

SEED_BASE = 950_000_000  # training draws from 0, the evaluation from 900,000,000
LONG_SIDE = 280  # px; twice what the small model sees, and less than 160 kB as PNG
# Seed above SEED_BASE -> a question that fits what is in the scene; chosen by looking at them.
SAMPLES = {
    1517: "Segment the red circle and the blue star.",
    6: "Segment the striped shapes.",
    7: "Where is the green circle? Please respond with segmentation mask.",  # there is none
    47: "Show me the purple cross and the blue square.",
    49: "Find the smallest star in the image.",
    23: "Segment the shape to the right of the red cross.",
    19: "How many squares are there?",
    13: "Find the dotted shapes in the image.",
    12: "Segment the blue circle.",  # there are two
    44: "Segment the crosses.",
    5: "What colour is the circle?",
    42: "Can you segment the blue square in this image?",  # there is none
}

KINDS = ("refer", "classes", "refer", "points", "refer", "boxes")
DISTRACTORS = 6  # class names of things that are not there, beside those that are


def typed(drawn: Scene, number: int) -> dict[str, Any]:
    """What a PSALM is asked about picture `number`, with one right answer: a key of `prompts.jsonl` and its value."""
    rng, kind = random.Random(number), KINDS[(number - 1) % len(KINDS)]
    if kind == "refer":
        found = expressions(drawn.things)
        texts = [
            text for name, meant in found.items() if name not in ("several", "none") for text, _ in meant
        ]
        return {"refer": rng.choice(texts)}
    if kind == "classes":
        here = sorted({thing.name for thing in drawn.things})
        names = here + rng.sample([name for name in NAMES if name not in here], DISTRACTORS)
        rng.shuffle(names)
        return {"classes": names}
    places = [np.nonzero(drawn.mask(thing)) for thing in drawn.things]
    return {kind: [_point(*place) if kind == "points" else _box(*place) for place in places]}


def _point(rows: np.ndarray, columns: np.ndarray) -> list[int]:
    """x, y of the visible pixel nearest to the middle of all of them."""
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return [int(columns[nearest]), int(rows[nearest])]


def _box(rows: np.ndarray, columns: np.ndarray) -> list[int]:
    """x0, y0, x1, y1, the last two exclusive."""
    return [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def write_samples(folder: Path) -> None:
    """scene_01.png, scene_02.png, ..., prompts.jsonl, one object a line (see quantize/records.py); and classes.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (seed, prompt) in enumerate(SAMPLES.items(), start=1):
        name = f"scene_{number:02}.png"
        drawn = scene(SEED_BASE + seed, LONG_SIDE)
        Image.fromarray(drawn.image).save(folder / name, optimize=True)
        row = {"image": name, "prompt": prompt, **typed(drawn, number)}
        lines.append(json.dumps(row) + "\n")
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the sample pictures of calib_data.")
    parser.add_argument("--out", type=Path, default=Path("calib_data"), help="Folder to write to.")
    args = parser.parse_args()
    write_samples(args.out)
