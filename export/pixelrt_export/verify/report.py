"""What a check found: a verdict, and the same as JSON, Markdown and one plot (drift by layer)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from pixelrt_export.verify.check import Outcome
from pixelrt_export.verify.comparison import Finding

STAGES = ("picture", "encoder", "tokens", "language", "targets", "pixel_decoder", "masks")  # as data flows
FILES = ("report.json", "report.md", "drift.svg")
SHOWN = 12  # findings of a fault in the report for readers


@dataclass(frozen=True)
class Thresholds:
    """min_iou: mean IoU of the bundle's masks with the original's. min_same: questions answered alike."""

    min_iou: float = 0.98
    min_same: float = 0.9


@dataclass(frozen=True)
class Report:
    outcome: Outcome
    thresholds: Thresholds
    precision: Mapping[str, str]

    @property
    def iou(self) -> float:
        """Mean over masks; 1 where nothing was drawn and nothing should have been."""
        ious = [value for one in self.outcome.judged for value in one.ious]
        return sum(ious) / len(ious) if ious else 1.0

    @property
    def same(self) -> float:
        return sum(one.same for one in self.outcome.judged) / len(self.outcome.judged)

    @property
    def faults(self) -> list[Finding]:
        """What is further off than its precision explains, as data flows."""
        failed = [finding for finding in self.outcome.findings if not finding.passed]
        return sorted(
            failed, key=lambda finding: STAGES.index(finding.stage)
        )  # stable: layers keep their order

    @property
    def passed(self) -> bool:
        return not self.faults and self.enough

    @property
    def enough(self) -> bool:
        return self.iou >= self.thresholds.min_iou and self.same >= self.thresholds.min_same

    @property
    def drift(self) -> dict[str, tuple[float, float]]:
        """Place of a layer -> its largest error and its limit."""
        places: dict[str, tuple[float, float]] = {}
        for finding in self.outcome.findings:
            if finding.where.startswith(("language.", "clip.", "swin.")) and " " not in finding.where:
                error, _ = places.get(finding.where, (0.0, 0.0))
                places[finding.where] = max(error, finding.error), finding.limit
        return places

    def sentence(self) -> str:
        """The verdict in one line."""
        masks = sum(len(one.ious) for one in self.outcome.judged)
        measured = (
            f"{self.same:.1%} of {len(self.outcome.judged)} questions answered alike, "
            f"mean IoU {self.iou:.4f} of {masks} masks"
        )
        if self.faults:
            first = self.faults[0]
            return (
                f"fault in {first.stage}: {first.where} is off by {first.error:.2g}, where "
                f"{first.limit:g} can be explained; {measured}"
            )
        wanted = self.thresholds
        if not self.enough:
            return (
                f"too far from the original: {measured}; wanted {wanted.min_same:.0%} and {wanted.min_iou:g}"
            )
        return measured

    def stages(self) -> dict[str, dict[str, float]]:
        """Stage -> largest error, its limit, and the smallest cosine."""
        return stages_of(self.outcome.findings)

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "passed": self.passed,
            "questions": len(self.outcome.judged),
            "same_answers": round(self.same, 4),
            "mask_iou": round(self.iou, 5),
            "wanted": asdict(self.thresholds),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            **self.summary(),
            "verdict": self.sentence(),
            "precision": dict(self.precision),
            "stages": {stage: _finite(row) for stage, row in self.stages().items()},
            "drift": {place: _finite({"error": e, "limit": li}) for place, (e, li) in self.drift.items()},
            "answers": [
                {"same": one.same, "ious": [round(v, 5) for v in one.ious]} for one in self.outcome.judged
            ],
            "faults": [finding.to_json() for finding in self.faults],
        }

    def to_markdown(self) -> str:
        verdict = "Passed" if self.passed else "Failed"
        lines = ["# Check against the checkpoint", "", f"**{verdict}**: {self.sentence()}."]
        lines += [
            "",
            "| stage | precision | largest error | may be | smallest cosine |",
            "|---|---|---|---|---|",
        ]
        for stage, row in self.stages().items():
            kind = self.precision.get(stage.partition(",")[0], "–")
            lines.append(
                f"| {stage} | {kind} | {row['error']:.2g} | {row['limit']:g} | {row['cosine']:.6f} |"
            )
        lines += [
            "",
            "Error: |bundle − original| / |original|, of each stage given the original's own inputs.",
        ]
        if self.faults:
            lines += ["", "## Faults, as data flows", ""]
            lines += ["| stage | what | question | error | may be |", "|---|---|---|---|---|"]
            for f in self.faults[:SHOWN]:
                lines.append(f"| {f.stage} | {f.where} | {f.question} | {f.error:.2g} | {f.limit:g} |")
            if len(self.faults) > SHOWN:
                lines.append(f"\n… {len(self.faults)} in all, in report.json.")
        lines += ["", "## Drift by layer", "", "![Error of each layer, given the same input](drift.svg)", ""]
        return "\n".join(lines)

    def write(self, folder: Path) -> tuple[str, ...]:
        """The three files; returns their names."""
        (folder / FILES[0]).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        (folder / FILES[1]).write_text(self.to_markdown(), encoding="utf-8")
        (folder / FILES[2]).write_text(bars(self.drift), encoding="utf-8")
        return FILES


def _finite(row: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {key: value if abs(value) < 1e300 else None for key, value in row.items()}


def bars(drift: Mapping[str, tuple[float, float]]) -> str:
    """An SVG: one bar a layer on a logarithmic scale from 1e-7 to 1, red where it is above its limit."""
    from math import log10

    left, row, wide = 190, 16, 420

    def across(error: float) -> float:
        return wide * min(max((log10(max(error, 1e-9)) + 7) / 7, 0), 1)

    lines, y = [], 24
    for place, (error, limit) in drift.items():
        colour = "#c0392b" if error > limit else "#2f6f9f"
        shown = f"{error:.1e}" if error < 1e9 else "not finite"
        lines.append(
            f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(place)}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{across(error):.1f}" height="{row - 5}" fill="{colour}"/>'
            f'<path d="M{left + across(limit):.1f} {y}v{row - 1}" stroke="#555"/>'
            f'<text x="{left + wide + 8}" y="{y + 11}">{shown}</text>'
        )
        y += row
    ticks = "".join(
        f'<text x="{left + wide * i / 7:.0f}" y="14" text-anchor="middle">1e-{7 - i}</text>'
        for i in range(1, 7)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 80}" height="{y + 8}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/>{ticks}{"".join(lines)}</svg>\n'
    )


def stages_of(findings: Sequence[Finding]) -> dict[str, dict[str, float]]:
    """Stage -> largest error, its limit, and the smallest cosine."""
    table: dict[str, dict[str, float]] = {}
    for stage in (name for step in STAGES for name in (f"{step}, stored", step)):
        found = [finding for finding in findings if group_of(finding) == stage]
        if found:
            worst = max(found, key=lambda finding: finding.error / (finding.limit or 1e-9))
            least = min(finding.cosine for finding in found)
            table[stage] = {"error": worst.error, "limit": worst.limit, "cosine": least}
    return table


def group_of(finding: Finding) -> str:
    """The stage, and apart from it the tensors that it has stored."""
    return f"{finding.stage}, stored" if finding.where.startswith("stored ") else finding.stage


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several groups of questions."""
    return Outcome([f for o in outcomes for f in o.findings], [j for o in outcomes for j in o.judged])
