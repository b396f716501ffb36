"""Export that answers for what it wrote: a bundle of few bits gets its name once it agrees with its checkpoint.

One that does not agree is bisected: exported again with its worst layers in 16 bits, to find the fewest that make it
pass. With `auto` that bundle is the result; without, it is refused, and the error names those layers. Verdicts are
kept beside the destination (`.NAME.trials`) until the end, so that a killed search goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.export import REJECTED, Rejected, chosen_precision, export_bundle
from pixelrt_export.families import family_of
from pixelrt_export.job import job
from pixelrt_export.quantize.plan import HEAD, ROUNDED, Progress, Settings
from pixelrt_export.quantize.records import Record, read_records
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.report import Report, Thresholds
from pixelrt_export.work import Concluded, work_on

PLACES = {"encoder": ("clip.", "swin."), "language": ("language.",)}  # how a stage's layers are named
SHOWN = 6
FIRST = "first"  # the verdict on the bundle that was asked for


class Refused(Concluded):
    """A bundle did not pass, and this is why."""


def export_gated(
    checkpoint: Path,
    bundle: Path,
    *,
    precision: str,
    stages: Mapping[str, str],
    vision_tower: Path | None,
    settings: Settings,
    thresholds: Thresholds,
    auto: bool,
    goldens: Callable[[Path], dict[str, Any]] | None = None,
    restart: bool = False,
    note: Callable[[str], None],
) -> tuple[Path, Report]:
    """Export and verify on the calibration pictures. Raises InputError, Refused."""
    target = bundle.resolve()
    opened = Checkpoint.open(checkpoint)
    family = family_of(str(opened.config.get("model_type")))
    records = read_records(settings.calib, family.TYPED)
    judge = Judge(checkpoint, vision_tower, records, thresholds, settings.progress)
    sources = family.sources(opened, vision_tower)
    same = job(sources, chosen_precision(precision, stages), settings, records)

    def export(folder: Path, keep: Sequence[str], restart: bool = False) -> Path:
        return export_bundle(
            checkpoint,
            folder,
            precision=precision,
            stages=stages,
            vision_tower=vision_tower,
            settings=replace(settings, keep=settings.keep | frozenset(keep)),
            gate=judge,
            goldens=goldens if folder == bundle else None,  # a trial is thrown away
            restart=restart,
            note=note,
        )

    with work_on(target, ".trials") as trials:
        begun = trials.begin(same | {"the thresholds": asdict(thresholds)}, restart)
        refused = target.with_name(target.name + REJECTED)
        if FIRST in trials.done and not refused.exists():
            trials.forget_from(FIRST)
        if FIRST not in trials.done:
            try:
                return export(bundle, (), restart), judge.report
            except Rejected as rejected:
                head = [HEAD] if settings.head else []
                found = {"said": judge.report.sentence(), "suspects": head + worst_first(judge.report)}
                trials.note(FIRST, {**found, "refusal": str(rejected)})
        elif begun == "":
            note("goes on after the check of the bundle")
        first = trials.done[FIRST]
        note(f"not passed: {first['said']}")
        suspects: list[str] = first["suspects"]
        trial = target.with_name(f".{target.name}.trial")

        def attempt(count: int) -> dict[str, Any]:
            with suppress(Rejected):
                export(trial, suspects[:count])
            shutil.rmtree(trial, ignore_errors=True)
            shutil.rmtree(trial.with_name(trial.name + REJECTED), ignore_errors=True)
            return {"passed": judge.report.passed, "said": judge.report.sentence()}

        def passes(count: int) -> bool:
            verdict = trials.once(f"{count} kept", lambda: attempt(count))
            note(f"with {count} of {len(suspects)} layers in 16 bits: {verdict['said']}")
            return bool(verdict["passed"])

        count = fewest(len(suspects), passes)
        if count is None:
            raise Refused(
                f"{first['refusal']} Rounding is not the reason: it does not pass with every layer in 16 bits "
                "either."
            )
        guilty = suspects[:count]
        if not auto:
            named = ", ".join(guilty[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
            raise Refused(f"{first['refusal']} It passes with {named} in 16 bits: --auto does that.")
        path = export(bundle, guilty)
        shutil.rmtree(refused)
        return path, judge.report


@dataclass
class Judge:
    """A gate for `export_bundle` that keeps its last report. The original is opened for the check alone: its vision
    tower takes 1.3 GB at 7B, which the export needs itself."""

    checkpoint: Path
    vision_tower: Path | None
    records: Sequence[Record]
    thresholds: Thresholds
    progress: Progress
    report: Report = field(init=False)

    def __call__(self, folder: Path) -> Report:
        original = open_original(self.checkpoint, self.vision_tower)
        self.report = verify_bundle(folder, original, self.records, self.thresholds, self.progress)
        return self.report


def worst_first(report: Report) -> list[str]:
    """Layers of the stages that were rounded, by what each alone does to its input."""
    begin = tuple(
        prefix
        for stage, prefixes in PLACES.items()
        if report.precision[stage] in ROUNDED
        for prefix in prefixes
    )
    drift = {place: error for place, (error, _) in report.drift.items() if place.startswith(begin)}
    return sorted(drift, key=lambda place: -drift[place])


def fewest(most: int, passes: Callable[[int], bool]) -> int | None:
    """The smallest count from 1 to `most` that passes, where more of them never do worse; None where none does."""
    low, high = 0, 1
    while not passes(min(high, most)):
        if high >= most:
            return None
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
