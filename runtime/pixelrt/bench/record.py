"""The measurement of one bundle as a JSON file: all samples, and what they say. See docs/benchmarking.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.samples import COLUMNS, table_of
from pixelrt.bench.statistics import Summary, summarise
from pixelrt.errors import InputError

FORMAT = 1
LARGEST = 1 << 28  # bytes; a million answers take a third of it
MOST = 1 << 20  # rounds, questions


@dataclass(frozen=True)
class Record:
    """about: the document without its samples and what follows from them. columns: of COLUMNS, ms, NaN where absent."""

    about: dict[str, Any]
    rounds: NDArray[np.int64]  # (N,)
    questions: NDArray[np.int64]  # (N,) places in about["questions"]
    columns: Mapping[str, NDArray[np.float64]]  # (N,) each

    @property
    def title(self) -> str:
        return f"{self.about['bundle']['name']} on {self.about['backend']}"

    def table(self, column: str) -> NDArray[np.float64]:
        """(R, Q) in ms, NaN where the stage did not occur."""
        return table_of(self.columns[column], self.rounds, self.questions)

    def summary(self, column: str) -> Summary | None:
        """None where no answer had this stage."""
        values = self.columns.get(column, np.zeros(0))
        values = values[np.isfinite(values)]
        return summarise(values) if len(values) else None

    def document(self) -> dict[str, Any]:
        stages = {name: self.summary(name) for name in COLUMNS}
        samples: dict[str, Any] = {"round": self.rounds.tolist(), "question": self.questions.tolist()}
        for name, values in self.columns.items():
            samples[name] = [None if np.isnan(ms) else round(float(ms), 4) for ms in values]
        return {
            "format": FORMAT,
            **self.about,
            "stages_ms": {name: None if s is None else _summary_json(s) for name, s in stages.items()},
            "samples_ms": samples,
        }


def _summary_json(summary: Summary) -> dict[str, Any]:
    numbers = {"mean": summary.mean, "std": summary.std}
    numbers |= {f"p{p}": value for p, value in summary.percentiles.items()}
    return {
        "n": summary.n,
        **{name: None if v is None else round(v, 4) for name, v in numbers.items()},
    }


def write_beside(path: Path, text: str) -> None:
    """Write a file under another name, then give it its own: it is never there in half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_record(path: Path) -> Record:
    """A file that `pixelrt bench` wrote. Raises InputError for anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MiB")
        document = json.loads(path.read_bytes())
        return _record_of(document, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Give a JSON file that pixelrt bench wrote."
        ) from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InputError(
            f"{path} is not a measurement of pixelrt bench ({what:.80}). Make one with: pixelrt bench BUNDLE"
        ) from None


def _record_of(document: Any, path: Path) -> Record:
    number = document["format"]
    if type(number) is int and number > FORMAT:
        raise InputError(f"{path} has format {number}; this pixelrt reads up to {FORMAT}. Upgrade pixelrt.")
    if type(number) is not int or number < 1:
        raise ValueError(f"format {number!r}")
    about = {key: value for key, value in document.items() if key not in ("stages_ms", "samples_ms")}
    for outer, inner in (
        ("bundle", ("name", "family", "sha256", "precision")),
        ("machine", ("cpu", "cores", "threads", "gpus", "module", "l4t")),
        ("before", ("power_mode", "load_average", "temperatures_c", "clocks_mhz", "gpus")),
        ("after", ("power_mode", "load_average", "temperatures_c", "clocks_mhz", "gpus")),
        ("throttling", ("seen", "signs")),
        ("memory", ("host_peak_bytes", "device_bytes")),
        ("energy", ("joules_per_answer", "watts", "source", "why_not")),
        ("overhead", ("share",)),
        ("settings", ("warmUp_ms", "duration_s", "iterations", "max-new-tokens")),
    ):
        for key in inner:
            about[outer][key]
    for key in ("run", "backend", "started", "versions", "load_ms", "first_answer_ms", "throughput_per_s",
                "forwards_per_answer"):  # fmt: skip
        about[key]
    for question in about["questions"]:
        if not all(isinstance(question[key], str) for key in ("sha256", "words", "answer_sha256")):
            raise ValueError("a question has no hash")
    samples = document["samples_ms"]
    rounds, questions = (np.asarray(samples[name], np.int64) for name in ("round", "question"))
    columns = {name: np.asarray(values, np.float64) for name, values in samples.items() if name in COLUMNS}
    count = len(rounds)
    if count == 0 or "total" not in columns or any(len(c) != count for c in (questions, *columns.values())):
        raise ValueError("its samples are not whole")
    if rounds.min() < 0 or questions.min() < 0 or rounds.max() >= MOST:
        raise ValueError("a sample of no round")
    if questions.max() >= len(about["questions"]) or any((c < 0).any() for c in columns.values()):
        raise ValueError("a sample of no question, or of negative time")
    if (np.isinf(np.stack(list(columns.values())))).any() or not np.isfinite(columns["total"]).all():
        raise ValueError("a sample without an end")
    if (int(rounds.max()) + 1) * len(about["questions"]) != count:
        raise ValueError("a round is not whole")
    return Record(about, rounds, questions, columns)
