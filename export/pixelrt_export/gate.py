"""Export that answers for what it wrote: a bundle of few bits gets its name once it agrees with its checkpoint.

One that does not agree is bisected: exported again with its worst layers in 16 bits, to find the fewest that make it
pass. With `auto` that bundle is the result; without, it is refused, and the error names those layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pixelrt_export.export import REJECTED, Progress, Rejected, export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import read_records
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.report import Report, Thresholds

ROUNDED = ("int8", "int4", "nf4")
PLACES = {"encoder": ("clip.", "swin."), "language": ("language.",)}  # how a stage's layers are named
SHOWN = 6


class Refused(RuntimeError):
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
    progress: Progress,
    note: Callable[[str], None],
) -> tuple[Path, Report]:
    """Export and verify on the calibration pictures. Raises InputError, Refused."""
    original = open_original(checkpoint, vision_tower)
    records = read_records(settings.calib, original.typed)
    seen: list[Report] = []

    def gate(folder: Path) -> Report:
        seen.append(verify_bundle(folder, original, records, thresholds, settings.progress))
        return seen[-1]

    def export(target: Path, keep: frozenset[str]) -> Path:
        return export_bundle(
            checkpoint,
            target,
            precision=precision,
            stages=stages,
            vision_tower=vision_tower,
            settings=replace(settings, keep=settings.keep | keep),
            gate=gate,
            progress=progress,
        )

    try:
        return export(bundle, frozenset()), seen[-1]
    except Rejected as rejected:
        refusal, report = rejected, rejected.verdict
    note(f"not passed: {report.sentence()}")
    suspects = worst_first(report)
    trial = bundle.resolve().with_name(f".{bundle.resolve().name}.trial")

    def passes(count: int) -> bool:
        try:
            export(trial, frozenset(suspects[:count]))
        except Rejected:
            pass
        finally:
            for folder in (trial, trial.with_name(trial.name + REJECTED)):
                shutil.rmtree(folder, ignore_errors=True)
        note(f"with {count} of {len(suspects)} layers in 16 bits: {seen[-1].sentence()}")
        return seen[-1].passed

    count = fewest(len(suspects), passes)
    if count is None:
        raise Refused(
            f"{refusal} Rounding is not the reason: it does not pass with every layer in 16 bits either."
        )
    guilty = suspects[:count]
    if not auto:
        named = ", ".join(guilty[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
        raise Refused(f"{refusal} It passes with {named} in 16 bits: --auto does that.")
    path = export(bundle, frozenset(guilty))
    shutil.rmtree(refusal.folder)
    return path, seen[-1]


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
