"""Records of an evaluation summed up: per group and kind of question, each measure with its standard error.

A mean's error takes the questions about one scene as one observation; the errors of panoptic quality and cIoU, which
are no means, are bootstrapped over scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pixelrt.evaluation.measures import quality

from pixelrt_export.tiny.measures import mean_and_error
from pixelrt_export.tiny.records import Record

BOOTSTRAPS = 400
SPECIAL = {  # kinds with measures of their own
    "panoptic": {"pq": "panoptic quality", "sq": "segmentation quality", "rq": "recognition quality"},
    "video": {"jf": "J&F", "j": "J", "f": "F"},
}

Value = tuple[float, float]
Tables = dict[str, dict[str, dict]]  # group -> kind -> questions, targets, measure -> (value, error) or None


class Tally:
    """What is left of the records of one group and kind."""

    def __init__(self) -> None:
        self.questions = self.targets = 0
        self.scores: dict[str, list[tuple[int, float]]] = {}
        self.overlaps: dict[int, np.ndarray] = {}  # seed -> pixels in both, in either
        self.counts: dict[int, np.ndarray] = {}

    def add(self, record: Record) -> None:
        self.questions += 1
        self.targets += len(record.wanted)
        for measure, values in record.scores.items():
            self.scores.setdefault(measure, []).extend((record.seed, float(v)) for v in values)
        self.overlaps[record.seed] = self.overlaps.get(record.seed, 0) + np.array(record.overlap())
        if record.counts is not None:
            self.counts[record.seed] = record.counts

    def row(self) -> dict:
        row: dict = {"questions": self.questions, "targets": self.targets}
        row |= {measure: mean_and_error(values) for measure, values in self.scores.items()}
        if self.counts:
            values = bootstrapped(
                np.stack(list(self.counts.values())), lambda total: np.array(quality(total))
            )
            return row | dict(zip(SPECIAL["panoptic"], values, strict=True))
        if "jf" not in row and self.targets:
            row["ciou"] = bootstrapped(
                np.stack(list(self.overlaps.values())), lambda total: np.array([total[0] / max(total[1], 1)])
            )[0]
        return row


def bootstrapped(stack: np.ndarray, of_total: Callable[[np.ndarray], np.ndarray]) -> list[Value]:
    """stack (scenes, ...), of_total: their sum -> (measures,). Each with its spread over redrawn scenes."""
    rng = np.random.default_rng(0)
    draws = [of_total(stack[rng.integers(len(stack), size=len(stack))].sum(0)) for _ in range(BOOTSTRAPS)]
    values = of_total(stack.sum(0))
    return [
        (round(float(v), 4), round(float(e), 4)) for v, e in zip(values, np.std(draws, axis=0), strict=True)
    ]


class Report:
    def __init__(self, measures: Mapping[str, str], order: Sequence[str], with_all: bool):
        """measures: key -> heading, in the order of the columns; order: of the kinds. with_all: also a row of all."""
        self.measures, self.order, self.with_all = measures, ("all", *order), with_all
        self.tallies: dict[str, dict[str, Tally]] = {}

    def add(self, record: Record) -> None:
        group = self.tallies.setdefault(record.group, {})
        for kind in ("all", record.kind) if self.with_all else (record.kind,):
            group.setdefault(kind, Tally()).add(record)

    def tables(self) -> Tables:
        return {
            group: {kind: kinds[kind].row() for kind in self.order if kind in kinds}
            for group, kinds in self.tallies.items()
        }

    def text(self) -> str:
        lines = [f"{'':42}{'questions':>9}" + "".join(f"{name:>16}" for name in self.measures.values())]
        for group, rows in self.tables().items():
            for kind, row in rows.items():
                if kind in SPECIAL:
                    lines += [
                        f"{group + ', ' + name:42}{row['questions']:>9}{cell(row.get(key)):>16}"
                        for key, name in SPECIAL[kind].items()
                    ]
                else:
                    cells = "".join(f"{cell(row.get(key)):>16}" for key in self.measures)
                    lines.append(f"{group + ', ' + kind:42}{row['questions']:>9}{cells}")
        return "\n".join(lines)

    def markdown(self) -> str:
        """For a model card: one table a group; the kinds with measures of their own in a table before it."""
        parts = []
        for group, rows in self.tables().items():
            own = [
                f"| {name} | {rows[kind]['questions']} | {cell(rows[kind].get(key))} |"
                for kind in SPECIAL
                if kind in rows
                for key, name in SPECIAL[kind].items()
            ]
            if own:
                parts.append("\n".join([f"| {group} | scenes | value |", "|---|---|---|", *own]))
            head = ["questions", *self.measures.values()]
            body = [
                f"| {kind} | {row['questions']} | "
                + " | ".join(cell(row.get(key)) for key in self.measures)
                + " |"
                for kind, row in rows.items()
                if kind not in SPECIAL
            ]
            lines = [f"| {group} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *body]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def cell(value: Value | None) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}" if value else "–"
