"""Forwards of the language model with drafts and without, and whether both say and draw the same.

    python -m benchmarks.speculation BUNDLE [--prompts 500] [--kind NAME] [--folder DIR] [--as-found] [--json FILE]

Questions: of the small models' scenes, one of each kind a scene, which training never draws (--kind: of one kind alone,
as `named`); or of DIR, a folder of pictures with a prompts.jsonl. Plain: every token is chosen, then read
(`seg_runs="original"`, no drafts). Drafted: as a program that has just started meets them, learning as it goes;
--as-found: without learning, by what is in the bundle alone. Counts, no times: they are the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from pixelrt.recording import plain as without_shortcuts
from pixelrt_export.quantize.records import read_records
from pixelrt_export.tiny.evaluate import SEED_BASE
from pixelrt_export.tiny.pixellm_exam import KINDS, questions_about
from pixelrt_export.tiny.scenes import scene

MAX_NEW_TOKENS = 160
LONG_SIDE = 140  # px


@dataclass(frozen=True)
class Row:
    """One question. named: each mask stands behind words of the question."""

    kind: str
    targets: int
    named: bool
    tokens: int
    plain: int
    drafted: int
    offered: int
    accepted: int
    same_tokens: bool
    pixels_different: int

    @property
    def groups(self) -> tuple[str, str]:
        """By what was answered: named or described. By what was asked: a pair may have one target or three."""
        count = {0: "no target", 1: "1 target", 2: "2 targets"}.get(self.targets, "3 targets and more")
        words = ", named in the question" if self.named else ", described"
        return count + (words if self.targets else ""), f"{self.kind}: {count}"


def asked_in_scenes(count: int, kind: str | None = None) -> Iterator[tuple[str, Any, str]]:
    """Kind, picture, question; in random order, as questions of one kind do not come together."""
    found: list[tuple[str, Any, str]] = []
    seed = SEED_BASE
    while len(found) < count:
        drawn = scene(seed, LONG_SIDE)
        asked = questions_about(drawn, seed)
        found += [(one.kind, drawn.image, one.text) for one in asked if kind in (None, one.kind)]
        seed += 1
    random.Random(0).shuffle(found)
    yield from found[:count]


def asked_in_folder(folder: Path, count: int) -> Iterator[tuple[str, Any, str]]:
    yield from (("folder", record.image, record.prompt) for record in read_records(folder)[:count])


def measured(segmenter: Any, questions: Iterator[tuple[str, Any, str]]) -> Iterator[Row]:
    alone: Any = without_shortcuts(segmenter)
    for kind, picture, text in questions:
        frame = segmenter.encode(picture)
        plain = alone.segment(frame, text, MAX_NEW_TOKENS, "original")
        drafted = segmenter.segment(frame, text, MAX_NEW_TOKENS)
        if len(plain.token_ids) != len(
            drafted.token_ids
        ):  # the model left a run, which `complete` goes on with
            plain = alone.segment(frame, text, MAX_NEW_TOKENS)
        same = plain.token_ids == drafted.token_ids and len(plain.masks) == len(drafted.masks)
        pairs = zip(plain.masks, drafted.masks, strict=False)
        yield Row(
            kind,
            len(plain.masks),
            all(mask.label and mask.label in text for mask in plain.masks),
            len(plain.token_ids),
            plain.decoding.forwards,
            drafted.decoding.forwards,
            drafted.decoding.drafted,
            drafted.decoding.accepted,
            same,
            sum(int((a.mask != b.mask).sum()) for a, b in pairs),
        )


def summary(rows: list[Row]) -> dict[str, Any]:
    targets = sum(row.targets for row in rows)
    offered = sum(row.offered for row in rows)
    saved = sum(row.plain - row.drafted for row in rows)
    return {
        "questions": len(rows),
        "plain_forwards": round(float(np.mean([row.plain for row in rows])), 2),
        "drafted_forwards": round(float(np.mean([row.drafted for row in rows])), 2),
        "in_one_forward": round(float(np.mean([row.drafted == 1 for row in rows])), 4),
        "saved_per_target": round(saved / targets, 2) if targets else None,
        "accept_rate": round(sum(row.accepted for row in rows) / offered, 4) if offered else None,
    }


def table(groups: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| questions | n | forwards, plain | forwards, drafted | in one forward | saved per target | drafts accepted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in groups.items():
        saved = "–" if row["saved_per_target"] is None else f"{row['saved_per_target']:.1f}"
        accepted = "–" if row["accept_rate"] is None else f"{row['accept_rate']:.0%}"
        lines.append(
            f"| {name} | {row['questions']} | {row['plain_forwards']:.1f} | {row['drafted_forwards']:.2f} "
            f"| {row['in_one_forward']:.0%} | {saved} | {accepted} |"
        )
    return "\n".join(lines)


def result(rows: list[Row]) -> dict[str, Any]:
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for group in row.groups:
            by[group].append(row)
    groups = {name: summary(by[name]) for name in sorted(by, key=lambda name: (":" in name, name))}
    return {
        "questions": len(rows),
        "same_tokens_and_masks": sum(row.same_tokens and not row.pixels_different for row in rows),
        "pixels_different": sum(row.pixels_different for row in rows),
        "groups": {"all": summary(rows), **groups},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--kind", choices=KINDS, help="of questions about scenes")
    parser.add_argument("--folder", type=Path, help="of pictures with a prompts.jsonl, in place of scenes")
    parser.add_argument("--as-found", action="store_true", help="do not learn from answers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.folder and args.kind:
        parser.error("--kind is of questions about scenes. Leave it out, or --folder.")
    segmenter: Any = pixelrt.load(args.bundle)
    if segmenter.bundle.manifest["family"] != "pixellm":
        parser.error("a PSALM writes no words: it has nothing to draft")
    segmenter.drafts.learning = not args.as_found
    questions = (
        asked_in_folder(args.folder, args.prompts)
        if args.folder
        else asked_in_scenes(args.prompts, args.kind)
    )
    rows = []
    for row in measured(segmenter, questions):
        rows.append(row)
        if len(rows) % 50 == 0:
            print(
                f"{len(rows)} questions, {sum(r.same_tokens for r in rows)} with the same tokens", flush=True
            )
    found = result(rows)
    print(table(found["groups"]))
    print(
        f"{found['same_tokens_and_masks']} of {len(rows)} answers equal in every token and pixel; "
        f"{found['pixels_different']} pixels differ"
    )
    if args.json:
        args.json.write_text(
            json.dumps({"bundle": segmenter.bundle.manifest["name"], **found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
