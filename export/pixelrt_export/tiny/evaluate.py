"""Score a tiny model of either family on scenes it never saw, by kind of question, with standard errors.

python -m pixelrt_export.tiny.evaluate BUNDLE [--scenes 500] [--json FILE] [--markdown FILE]
    [--failures DIR] [--long-side N] [--seed-base N] [--against MODEL]

The family is read from the bundle; what is asked and how it is judged is in pixellm_exam.py and psalm_exam.py. Seeds
are held out; a quarter as many scenes have backgrounds that are held out too. A checkpoint folder may stand in for the
bundle: a PixelLM's then runs through the torch reference, a PSALM's is exported first. --against asks a second PixelLM
the same and compares the answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pixelrt
from pixelrt.errors import InputError

from pixelrt_export.tiny import pixellm_exam, psalm_exam
from pixelrt_export.tiny.backgrounds import GROUPS
from pixelrt_export.tiny.failures import Failures
from pixelrt_export.tiny.pixellm_exam import Answerer, Reply
from pixelrt_export.tiny.records import Record
from pixelrt_export.tiny.tables import Report, Tables

SEED_BASE = 900_000_000  # training draws from 0
LONG_SIDES = {"pixellm": 140, "psalm": 160}  # px, as trained
FAMILIES = {"llava": "pixellm", "llava_phi": "psalm"}  # a checkpoint's model_type


def family_of(folder: Path) -> tuple[str, bool]:
    """And whether the folder is a bundle."""
    if (folder / "manifest.json").is_file():
        return json.loads((folder / "manifest.json").read_text())["family"], True
    if (folder / "config.json").is_file():
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind in FAMILIES:
            return FAMILIES[kind], False
        raise InputError(
            f"{folder} holds a {kind!r} checkpoint, not a PixelLM or a PSALM one. Give one of those."
        )
    raise InputError(
        f"{folder} is neither a bundle nor a checkpoint. Export one with `pixelrt export` first."
    )


def places(scenes: int, seed_base: int) -> Iterator[tuple[str, int]]:
    """Group and seed: `scenes` of the held-out seeds, a quarter as many with held-out backgrounds."""
    for group in GROUPS:
        for k in range(scenes if group == "held-out seeds" else -(-scenes // 4)):
            yield group, seed_base + k


def answerer(folder: Path) -> Answerer:
    family, bundled = family_of(folder)
    if family != "pixellm":
        raise InputError(f"{folder} is a {family} model; --against compares PixelLM models. Leave it out.")
    return pixellm_exam.bundle_answerer(folder) if bundled else pixellm_exam.reference_answerer(folder)


def ask(
    answer: Answerer,
    scenes: int,
    seed_base: int,
    long_side: int,
    against: Answerer | None = None,
) -> Iterator[tuple[Record, Reply | None]]:
    """Records of a PixelLM, and what the second model says to the same."""
    for group, seed in places(scenes, seed_base):
        for asked, record in pixellm_exam.examine(answer, group, seed, long_side):
            yield record, against(record.image, asked.text) if against else None


def ask_psalm(bundle: Path, scenes: int, seed_base: int, long_side: int) -> Iterator[tuple[Record, None]]:
    segmenter = pixelrt.load(bundle)
    for group, seed in places(scenes, seed_base):
        for record in psalm_exam.examine(segmenter, group, seed, long_side):
            yield record, None


def watched(
    asked: Iterator[tuple[Record, Reply | None]], scenes: int
) -> Iterator[tuple[Record, Reply | None]]:
    """A line of progress every five seconds, on the error stream."""
    started = said = time.monotonic()
    expected, seen = scenes + -(-scenes // 4), set()
    for pair in asked:
        seen.add((pair[0].group, pair[0].seed))
        now = time.monotonic()
        if now - said > 5:
            left = (now - started) * (expected - len(seen)) / len(seen)
            print(f"{len(seen)} of {expected} scenes, ETA {left / 60:.1f} min", file=sys.stderr, flush=True)
            said = now
        yield pair


def evaluate(args: argparse.Namespace) -> tuple[Report, Failures, Tables]:
    family, bundled = family_of(args.model)
    exam = {"pixellm": pixellm_exam, "psalm": psalm_exam}[family]
    report, failures = Report(exam.MEASURES, exam.KINDS, with_all=family == "pixellm"), Failures()
    setting = (args.scenes, args.seed_base, args.long_side or LONG_SIDES[family])
    pairs: list[tuple[Record, Reply]] = []
    with tempfile.TemporaryDirectory() as scratch:
        if family == "pixellm":
            second = answerer(args.against) if args.against else None
            asked = ask(answerer(args.model), *setting, second)
        else:
            bundle = args.model
            if not bundled:
                from pixelrt_export.export import export_bundle

                bundle = export_bundle(args.model, Path(scratch) / "bundle")
            asked = ask_psalm(bundle, *setting)
        for record, other in watched(asked, args.scenes):
            report.add(record)
            failures.add(record)
            if other is not None:
                pairs.append((record, other))
    tables = report.tables()
    return report, failures, tables | ({"against": pixellm_exam.agreement(pairs)} if pairs else {})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="bundle or checkpoint folder")
    parser.add_argument("--scenes", type=int, default=500, help="on held-out seeds; a quarter on backgrounds")
    parser.add_argument("--json", type=Path, help="write the tables here")
    parser.add_argument("--markdown", type=Path, help="write the tables here, as a model card has them")
    parser.add_argument(
        "--failures", type=Path, help="write failures.jpg, the worst answers, into this folder"
    )
    parser.add_argument("--long-side", type=int, help="of the scenes, in pixels (default: as trained)")
    parser.add_argument("--seed-base", type=int, default=SEED_BASE)
    parser.add_argument("--against", type=Path, help="second PixelLM to compare answers with")
    args = parser.parse_args()
    try:
        report, failures, tables = evaluate(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(report.text())
    if "against" in tables:
        print(json.dumps(tables["against"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(report.markdown() + "\n", encoding="utf-8")
    if args.failures and (file := failures.write(args.failures)):
        print(f"the worst answers: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
