"""Tables of an evaluation: a row a measure, a column a bundle, the papers' figures last and marked as theirs."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.evaluation.benchmark import Benchmark
from pixelrt.evaluation.published import Published, published


@dataclass(frozen=True)
class Column:
    """What one bundle scored."""

    bundle: str  # name of its folder
    precision: str
    family: str
    sha256: str
    protocol: str
    items: int
    scores: Mapping[str, float]  # 0..1, or nan
    journal: Path

    @property
    def heading(self) -> str:
        return self.bundle if self.precision in self.bundle else f"{self.bundle} {self.precision}"


def text_table(benchmark: Benchmark, columns: Sequence[Column]) -> str:
    rows = _rows(benchmark, columns)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([title(benchmark), "", *lines, "", *_notes(benchmark, columns)])


def markdown_table(benchmark: Benchmark, columns: Sequence[Column]) -> str:
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in _rows(benchmark, columns))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [
            f"### {title(benchmark)}",
            "",
            f"| {' | '.join(head)} |",
            "|---" + "|---:" * (len(head) - 1) + "|",
            *lines,
            "",
            *(f"- {note}" for note in _notes(benchmark, columns)),
        ]
    )


def document(benchmark: Benchmark, columns: Sequence[Column], version: str) -> dict[str, Any]:
    """Everything of the tables; scores in 0..1, null where there is none."""
    return {
        "pixelrt": version,
        "dataset": benchmark.name,
        "variant": benchmark.variant,
        "split": benchmark.split,
        "annotations_sha256": benchmark.sha256,
        "items_of_the_split": len(benchmark.items),
        "bundles": [
            {
                "bundle": column.bundle,
                "precision": column.precision,
                "family": column.family,
                "manifest_sha256": column.sha256,
                "asked": column.protocol,
                "items": column.items,
                "scores": {name: None if math.isnan(v) else v for name, v in column.scores.items()},
            }
            for column in columns
        ],
        "published_by_the_papers": [vars(figure) for figure in published(benchmark.variant, benchmark.split)],
    }


def title(benchmark: Benchmark) -> str:
    name = (
        benchmark.name if benchmark.variant == benchmark.name else f"{benchmark.name} ({benchmark.variant})"
    )
    return f"{name}, {benchmark.split}, {len(benchmark.items):,} {benchmark.unit}"


def write_beside(file: Path, text: str) -> None:
    """Whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".pixelrt-", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def as_json(whole: dict[str, Any]) -> str:
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _rows(benchmark: Benchmark, columns: Sequence[Column]) -> list[list[str]]:
    theirs: dict[str, list[Published]] = {}
    for figure in published(benchmark.variant, benchmark.split):
        theirs.setdefault(figure.model, []).append(figure)
    head = ["per cent", *(column.heading for column in columns), *(f"{model} (theirs)" for model in theirs)]
    rows = [head]
    for measure in benchmark.measures:
        row = [measure, *(_cell(column.scores.get(measure, math.nan)) for column in columns)]
        for figures in theirs.values():
            row.append(next((f"{100 * f.value:.1f}" for f in figures if f.measure == measure), "–"))
        rows.append(row)
    return [*rows, [benchmark.unit, *(f"{column.items:,}" for column in columns), *("–" for _ in theirs)]]


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _notes(benchmark: Benchmark, columns: Sequence[Column]) -> list[str]:
    notes = [
        f"{family} was asked: {how}." for family, how in sorted({(c.family, c.protocol) for c in columns})
    ]
    partial = [column for column in columns if column.items < len(benchmark.items)]
    if partial:
        notes.append(
            f"Not the whole split: {partial[0].items:,} of {len(benchmark.items):,} {benchmark.unit}; "
            "not to be compared with a paper."
        )
    sources = sorted({figure.source for figure in published(benchmark.variant, benchmark.split)})
    return notes + [f"Theirs, not measured here: {source}." for source in sources]
