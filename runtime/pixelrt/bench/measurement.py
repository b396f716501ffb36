"""Measure one bundle, or several in turn: each question to each of them, round by round, in changing order."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.backends import open_backend
from pixelrt.bench.files import Files
from pixelrt.bench.machine import find_power, read_machine, read_versions
from pixelrt.bench.meter import PERIOD_S, Meter, peak_resident
from pixelrt.bench.nvidia import read_gpus
from pixelrt.bench.record import Record
from pixelrt.bench.samples import COLUMNS, Question, Sample, take_sample
from pixelrt.bench.state import read_state, read_throttling, throttled
from pixelrt.bench.stopwatch import TimedBackend, seconds_per_call
from pixelrt.bundle import Bundle
from pixelrt.segmenter import Segmenter, open_bundle

IMAGE = -200  # in the ids of a prompt; see `Segmenter.check`
READINGS_MIN = 5  # of power within an answer, to tell it from the answer of another bundle beside it


@dataclass(frozen=True)
class Settings:
    """The first three mean what they mean to trtexec.

    warm_up_ms: before anything is counted, each bundle answers that long, and each question once. duration_s,
    iterations: answers to each question go on for so long and are so many, at least. max_new_tokens: as for `segment`.
    """

    warm_up_ms: float = 200.0
    duration_s: float = 3.0
    iterations: int = 10
    max_new_tokens: int = 512


@dataclass
class Subject:
    """A loaded bundle and what was measured of it."""

    segmenter: Segmenter
    backend: TimedBackend
    load_ms: float
    first_ms: float = 0.0
    samples: list[tuple[int, int, Sample]] = field(default_factory=list)  # round, question

    @property
    def on_gpu(self) -> bool:
        return "cpu" not in self.segmenter.backend


def load_subject(path: Path, backend: str = "auto") -> Subject:
    """Read, check and load a bundle; the time of all that is its `load`. Raises InputError."""
    start = time.perf_counter()
    bundle = Bundle.read(path)
    timed = TimedBackend(open_backend(bundle, backend))
    segmenter = open_bundle(bundle, timed)
    return Subject(segmenter, timed, 1e3 * (time.perf_counter() - start))


def measure(
    subjects: Sequence[Subject],
    questions: Sequence[Question],
    settings: Settings,
    files: Files | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
    used_before: Sequence[float | None] = (),
) -> list[Record]:
    """A record for each subject. told: rounds done, and how many there will be as far as is known.

    used_before: MiB that were taken on each GPU before the subjects were loaded.
    """
    files = Files() if files is None else files
    asked = [question.sha256 for question in questions]
    for subject in subjects:
        _forget(subject.segmenter, questions)
        _warm_up(subject, questions, settings)
    signs = read_throttling(files)
    before = read_state(files)
    gpu = any(subject.on_gpu for subject in subjects)
    gc.collect()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Meter(files, find_power(files, gpu)) as meter:
        time.sleep(PERIOD_S)  # a reading before the first answer
        start = time.perf_counter()
        for number in count():
            spent = time.perf_counter() - start
            if number >= settings.iterations and spent >= settings.duration_s:
                break
            per_round = spent / number if number else settings.duration_s
            left = max(settings.iterations - number, (settings.duration_s - spent) / max(per_round, 1e-9))
            told(number, number + max(1, int(left + 0.5)))
            for place, question in enumerate(questions):
                # Whoever comes second finds the caches as the first left them, so the order changes.
                turn = (number + place) % len(subjects)
                for subject in (*subjects[turn:], *subjects[:turn]):
                    sample = take_sample(
                        subject.segmenter, subject.backend, question, settings.max_new_tokens
                    )
                    subject.samples.append((number, place, sample))
        wall = time.perf_counter() - start
    after = read_state(files)
    seen, what = throttled(signs, meter.signs | _highest(meter.signs, read_throttling(files)),
                           [*before["gpus"], *after["gpus"]] if gpu else [])  # fmt: skip
    shared = {
        "program": "pixelrt bench",
        "run": uuid.uuid4().hex,
        "started": started,
        "interleaved": len(subjects),
        "settings": {
            "warmUp_ms": settings.warm_up_ms,
            "duration_s": settings.duration_s,
            "iterations": settings.iterations,
            "max-new-tokens": settings.max_new_tokens,
        },
        "machine": read_machine(files),
        "versions": read_versions(),
        "before": before,
        "after": after,
        "throttling": {"seen": seen, "signs": what},
    }
    device = _device_bytes(after["gpus"], used_before) if gpu and len(subjects) == 1 else None
    memory = {"host_peak_bytes": peak_resident(files) if len(subjects) == 1 else None, "device_bytes": device}
    per_call = seconds_per_call()
    records = []
    for subject in subjects:
        about = shared | {
            "memory": memory,
            "energy": _energy(subject, meter, len(subjects)),
            "overhead": _overhead(subject, per_call, meter.cpu_s, wall),
        }
        records.append(_record(subject, questions, asked, about))
    return records


def _forget(segmenter: Segmenter, questions: Sequence[Question]) -> None:
    """A question that is asked again and again is answered as one that was never asked: nobody drafts from it."""
    drafts = getattr(segmenter, "drafts", None)
    if drafts is not None:
        drafts.learning = False
        for question in questions:
            ids = segmenter.check(question.query, question.image)
            drafts.forget(ids[ids.index(IMAGE) + 1 :])


def _warm_up(subject: Subject, questions: Sequence[Question], settings: Settings) -> None:
    start = time.perf_counter()
    for number in count():
        spent = 1e3 * (time.perf_counter() - start)
        if number >= len(questions) and spent >= settings.warm_up_ms:
            return
        question = questions[number % len(questions)]
        sample = take_sample(subject.segmenter, subject.backend, question, settings.max_new_tokens)
        if number == 0:
            subject.first_ms = sample.spent["total"]


def _highest(some: dict[str, float], others: dict[str, float]) -> dict[str, float]:
    return {name: max(value, some.get(name, value)) for name, value in others.items()}


def _device_bytes(gpus: Sequence[dict[str, Any]], before: Sequence[float | None]) -> int | None:
    """What GPU 0 holds more than before the bundle was loaded; other programs' changes are in it."""
    if not gpus or not before or before[0] is None or gpus[0]["used_mib"] is None:
        return None
    return int(gpus[0]["used_mib"] - before[0]) << 20


def _energy(subject: Subject, meter: Meter, subjects: int) -> dict[str, Any]:
    """Mean joules of an answer, everything the sensor sees included, also what an idle machine draws."""
    source = meter.sensor.name if meter.sensor is not None else None
    windows = [(sample.start, sample.stop) for _, _, sample in subject.samples]
    seconds = sum(stop - start for start, stop in windows)
    joules = meter.joules(windows)
    why = None
    if source is None:
        why = "no sensor of power that can be read"
    elif subjects > 1 and seconds / len(windows) < READINGS_MIN * meter.period_s:
        why, joules = f"answers in turn are shorter than {READINGS_MIN} readings of power", None
    elif joules is None:
        why = "the sensor gave too few readings"
    return {
        "joules_per_answer": None if joules is None else joules / len(windows),
        "watts": None if joules is None else joules / seconds,
        "source": source,
        "readings": meter.readings,
        "why_not": why,
    }


def _overhead(subject: Subject, per_call: float, meter_s: float, wall: float) -> dict[str, float]:
    """What measuring adds: of the answers' time for the timers, of all time for the thread that reads sensors."""
    # take_sample reads the clock six times itself, about one call's worth each.
    calls = sum(sample.forwards for _, _, sample in subject.samples) + (3 + 6) * len(subject.samples)
    seconds = sum(sample.stop - sample.start for _, _, sample in subject.samples)
    timers, sensors = calls * per_call / seconds, meter_s / wall
    return {
        "timer_us_per_call": 1e6 * per_call,
        "timers": timers,
        "sensors": sensors,
        "share": timers + sensors,
    }


def _record(
    subject: Subject, questions: Sequence[Question], asked: Sequence[str], about: dict[str, Any]
) -> Record:
    bundle = subject.segmenter.bundle
    samples = [sample for _, _, sample in subject.samples]
    seconds = sum(sample.stop - sample.start for sample in samples)
    first = {place: sample for _, place, sample in reversed(subject.samples)}
    listed = [
        {
            "image": question.image.name,
            "words": question.words,
            "sha256": sha256,
            "tokens": first[place].tokens,
            "forwards": first[place].forwards,
            "masks": first[place].masks,
            "answer_sha256": first[place].answer_sha256,
        }
        for place, (question, sha256) in enumerate(zip(questions, asked, strict=True))
    ]
    columns = {name: np.array([sample.spent.get(name, np.nan) for sample in samples]) for name in COLUMNS}
    about = about | {
        "bundle": {
            "name": bundle.manifest["name"],
            "family": bundle.manifest["family"],
            "precision": bundle.manifest["precision"],
            "sha256": bundle.sha256,
        },
        "backend": subject.segmenter.backend,
        "load_ms": subject.load_ms,
        "first_answer_ms": subject.first_ms,
        "throughput_per_s": len(samples) / seconds,
        "forwards_per_answer": sum(sample.forwards for sample in samples) / len(samples),
        "questions": listed,
    }
    return Record(
        about,
        np.array([number for number, _, _ in subject.samples], np.int64),
        np.array([place for _, place, _ in subject.samples], np.int64),
        {name: values for name, values in columns.items() if np.isfinite(values).any()},
    )


def gpu_memory_used(files: Files) -> list[float | None]:
    """MiB of each GPU."""
    return [gpu["used_mib"] for gpu in read_gpus(files)]
