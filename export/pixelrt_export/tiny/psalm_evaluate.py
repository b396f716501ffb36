"""Score a tiny PSALM on scenes it never saw, through the runtime: panoptic quality, sentences, marked regions.

python -m pixelrt_export.tiny.psalm_evaluate BUNDLE_OR_CHECKPOINT [--scenes 500] [--seed-base N] [--long-side 160]
    [--json FILE]

Panoptic quality as COCO defines it, all 30 names as classes: of each class, the summed IoU of matched segments over
(matches + half of what was missed + half of what was invented), a match being of one class and IoU > 0.5; its mean
over the classes that occur. The background is no void: a segment drawn there is an invention. Sentences: IoU of the
one mask; of all masks together where several things are meant; whether nothing is drawn where nothing is. Standard
errors take a scene as one observation, those of panoptic quality are bootstrapped over scenes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pixelrt
from pixelrt.queries import Classes, Refer, Regions

from pixelrt_export.tiny.evaluate import GROUPS, SEED_BASE, iou, mean_and_error
from pixelrt_export.tiny.looks import FLAT
from pixelrt_export.tiny.psalm_prompts import NAMES, mark, sentence
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import Scene

LONG_SIDE = 160
MARKS = {"point": "points", "scribble": "scribbles", "box": "boxes", "mask": "masks"}
NONE_BELOW = 0.5
BOOTSTRAPS = 400

Counts = np.ndarray  # (classes, 4): summed IoU, matches, invented, missed


@dataclass(frozen=True)
class Seen:
    """What one scene gave: panoptic counts, and (kind, value) of everything else."""

    group: str
    seed: int
    counts: Counts
    values: tuple[tuple[str, float], ...]


def counts(truth: dict[int, tuple[int, np.ndarray]], found: Sequence[tuple[int, np.ndarray]]) -> Counts:
    """Of one scene. truth: label -> class and mask (H, W); found: the same, masks disjoint.

    Disjoint masks match at most once above IoU 0.5, so no assignment is to be found.
    """
    table, taken = np.zeros((len(NAMES), 4)), set()
    for number, got in found:
        match = next((k for k, (n, want) in truth.items() if n == number and iou(got, want) > 0.5), None)
        if match is None or match in taken:
            table[number, 2] += 1
        else:
            taken.add(match)
            table[number, :2] += iou(got, truth[match][1]), 1
    for label, (number, _) in truth.items():
        table[number, 3] += label not in taken
    return table


def quality(table: Counts) -> tuple[float, float, float]:
    """Panoptic, segmentation and recognition quality, means over the classes that occur."""
    total, right, invented, missed = table.T
    occurs = right + invented + missed > 0
    among = np.maximum(right + (invented + missed) / 2, 1e-9)
    parts = total / among, total / np.maximum(right, 1e-9), right / among
    pq, sq, rq = (float(part[occurs].mean()) if occurs.any() else 0.0 for part in parts)
    return pq, sq, rq


def panoptic(segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, drawn: Scene) -> Counts:
    answer = segmenter.segment(frame, Classes(NAMES))
    truth = {t.label: (NAMES.index(t.name), drawn.mask(t)) for t in drawn.things}
    return counts(truth, [(s.category, answer.label_map == s.id) for s in answer.segments])


def spoken(segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, drawn: Scene, seed: int) -> Iterator[tuple]:
    """One sentence of each kind that the scene allows."""
    for kind in FLAT.expressions:
        asked = sentence(drawn.things, random.Random(f"{seed} {kind}"), kind)
        if asked is None:
            continue
        query = Refer(
            asked.texts[0], several=kind == "several", none_below=NONE_BELOW if kind == "none" else 0
        )
        masks = [m.mask for m in segmenter.segment(frame, query).masks]
        if kind == "none":
            yield "none: refused", float(not masks)
            continue
        drawn_over = np.any(masks, axis=0) if masks else np.zeros(drawn.labels.shape, bool)
        yield f"sentence: {kind}", iou(drawn_over, np.isin(drawn.labels, list(asked.answers)))


def marked(segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, drawn: Scene, seed: int) -> Iterator[tuple]:
    """Every thing by a point, a scribble, a box and its mask; all things of a scene in one prompt."""
    for kind, name in MARKS.items():
        rng, given = random.Random(f"{seed} {kind}"), []
        for thing in drawn.things:
            inside = drawn.mask(thing)
            rows, columns = np.nonzero(inside)
            places = [(int(columns[i]), int(rows[i])) for i in (rng.randrange(len(rows)) for _ in range(3))]
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            forms = {"point": places[0], "scribble": places, "box": tuple(map(int, box))}
            given.append(forms.get(kind, mark(inside, "mask", rng)))
        answer = segmenter.segment(frame, Regions(**{name: given}))
        for thing, got in zip(drawn.things, answer.masks, strict=True):
            yield f"region: {kind}", iou(got.mask, drawn.mask(thing))


def look(segmenter: pixelrt.Segmenter, group: str, seed: int, long_side: int) -> Seen:
    drawn = scene(seed, long_side, GROUPS[group])
    frame = segmenter.encode(drawn.image)
    values = [*spoken(segmenter, frame, drawn, seed), *marked(segmenter, frame, drawn, seed)]
    return Seen(group, seed, panoptic(segmenter, frame, drawn), tuple(values))


def report(seen: Sequence[Seen]) -> dict:
    """Per group: panoptic quality, then every kind: [mean, standard error], questions."""
    tables = {}
    for group in GROUPS:
        ours = [s for s in seen if s.group == group]
        if not ours:
            continue
        stack, rng = np.stack([s.counts for s in ours]), np.random.default_rng(0)
        draws = [quality(stack[rng.integers(len(ours), size=len(ours))].sum(0)) for _ in range(BOOTSTRAPS)]
        rows = {
            name: {"value": (round(value, 4), round(float(error), 4)), "questions": len(ours)}
            for name, value, error in zip(
                ("panoptic quality", "segmentation quality", "recognition quality"),
                quality(stack.sum(0)),
                np.std(draws, axis=0),
                strict=True,
            )
        }
        kinds = dict.fromkeys(kind for s in ours for kind, _ in s.values)
        for kind in kinds:
            values = [(s.seed, v) for s in ours for k, v in s.values if k == kind]
            rows[kind] = {"value": mean_and_error(values), "questions": len(values)}
        tables[group] = rows
    return tables


def printed(tables: dict) -> str:
    lines = []
    for group, rows in tables.items():
        lines.append(f"{group}")
        for kind, row in rows.items():
            lines.append(f"  {kind:24}{row['questions']:>7}   {row['value'][0]:.3f} ± {row['value'][1]:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="bundle, or checkpoint folder (which is exported first)")
    parser.add_argument("--scenes", type=int, default=500, help="on held-out seeds; a quarter on backgrounds")
    parser.add_argument("--seed-base", type=int, default=SEED_BASE)
    parser.add_argument("--long-side", type=int, default=LONG_SIDE, help="of the scenes, in pixels")
    parser.add_argument("--json", type=Path, help="write the tables here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.model
        if not (bundle / "manifest.json").exists():
            from pixelrt_export.export import export_bundle

            bundle = export_bundle(args.model, Path(scratch) / "bundle")
        segmenter = pixelrt.load(bundle)
        seen = [
            look(segmenter, group, args.seed_base + k, args.long_side)
            for group in GROUPS
            for k in range(args.scenes if group == "held-out seeds" else -(-args.scenes // 4))
        ]
    tables = report(seen)
    print(printed(tables))
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
