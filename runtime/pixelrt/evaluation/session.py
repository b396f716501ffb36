"""One evaluation: bundle after bundle, item after item, each answer into the bundle's journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.evaluation.benchmark import Benchmark, Options
from pixelrt.evaluation.coco_instance import open_coco_instance
from pixelrt.evaluation.coco_panoptic import open_coco_panoptic
from pixelrt.evaluation.davis import open_davis
from pixelrt.evaluation.journal import Journal
from pixelrt.evaluation.muse import open_muse
from pixelrt.evaluation.refcoco import open_refcoco
from pixelrt.evaluation.report import Column
from pixelrt.segmenter import load

DATASETS: dict[str, Callable[[Path, Options], Benchmark]] = {
    "refcoco": open_refcoco,
    "muse": open_muse,
    "coco-panoptic": open_coco_panoptic,
    "coco-instance": open_coco_instance,
    "davis": open_davis,
}
# Dataset -> families of options that only they take.
QUESTION_FOR, GENERATE_FOR, BLIND_FOR = ("refcoco", "muse"), ("refcoco",), ("davis",)
SAID_EVERY = 5.0  # seconds

Say = Callable[[str], None]


def open_benchmark(dataset: str, folder: Path, options: Options) -> Benchmark:
    """Raises InputError: no such folder, files missing or malformed, options of another dataset."""
    for given, name, takers in (
        (options.question, "--question", QUESTION_FOR),
        (options.generate, "--generate", GENERATE_FOR),
        (options.blind, "--blind", BLIND_FOR),
    ):
        if given and dataset not in takers:
            raise InputError(
                f"{name} was given, but {dataset} does not take it; {' and '.join(takers)} does."
            )
    if options.question is not None and "{sent}" not in options.question:
        raise InputError(
            f'--question {options.question!r} has no {{sent}}. Write for example: "Segment {{sent}}."'
        )
    for place in (folder, options.images):
        if place is not None and not place.is_dir():
            raise InputError(f"{place} is not a folder. docs/evaluation.md shows how {dataset} is laid out.")
    benchmark = DATASETS[dataset](folder, options)
    names = [benchmark.identify(item) for item in benchmark.items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"{dataset} in {folder} has two {benchmark.unit} named {twice}. Download the annotations again."
        )
    return benchmark


def check_bundles(paths: Sequence[Path], benchmark: Benchmark) -> list[Bundle]:
    """Every bundle is read, and refused where its family has no answer, before the first is loaded."""
    bundles = [Bundle.read(path, verify=False) for path in paths]  # `load` hashes the files
    for bundle in bundles:
        family = bundle.manifest["family"]
        if family not in benchmark.ask:
            able = " and ".join(sorted(benchmark.ask))
            raise InputError(
                f"{bundle.path} is of family {family!r}, which is not evaluated on {benchmark.name}; {able} is. "
                "Leave it out, or choose another --dataset."
            )
    return bundles


def evaluate(
    bundle: Bundle, benchmark: Benchmark, out: Path, limit: int | None, backend: str, say: Say
) -> Column:
    """The scores of one bundle over the first `limit` items; what its journal has is not asked again."""
    items = benchmark.items[:limit]
    for item in items:
        for file in benchmark.files(item):
            if not file.is_file():
                raise InputError(f"{file} is not there. Download it, or give its folder with --images.")
    family = str(bundle.manifest["family"])
    protocol, name = benchmark.protocol[family], bundle.path.resolve().name
    about = {
        "bundle": bundle.sha256,
        "dataset": benchmark.name,
        "split": benchmark.split,
        "annotations": benchmark.sha256,
        "way of asking": protocol,
    }
    journal_file = out / f"{name}-{bundle.sha256[:8]}-{benchmark.variant}-{benchmark.split}.jsonl"
    with Journal(journal_file, about) as journal:
        todo = [item for item in items if benchmark.identify(item) not in journal.records]
        if len(todo) < len(items):
            say(
                f"{name}: {len(items) - len(todo):,} of {len(items):,} {benchmark.unit} are in {journal_file}"
            )
        if todo:
            segmenter, progress = (
                load(bundle.path, backend=backend),
                Progress(name, len(todo), benchmark.unit, say),
            )
            for item in todo:
                journal.add(benchmark.identify(item), benchmark.ask[family](segmenter, item))
                progress.step()
        records = [journal.records[benchmark.identify(item)] for item in items]
        try:
            scores = benchmark.scores(items, records)
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(
                f"{journal_file} holds records of another shape. Delete it and run again."
            ) from None
    return Column(
        bundle=name,
        precision=_precision(bundle),
        family=family,
        sha256=bundle.sha256,
        protocol=protocol,
        items=len(items),
        scores=scores,
        journal=journal_file,
    )


def _precision(bundle: Bundle) -> str:
    """As it was asked for at export; else what its stages have."""
    asked = bundle.manifest.get("asked_precision")
    stages = sorted(set(bundle.manifest["precision"].values()))
    return asked if isinstance(asked, str) else "/".join(stages)


class Progress:
    """A line every few seconds: how many, and when the rest will be done."""

    def __init__(self, name: str, total: int, unit: str, say: Say) -> None:
        self.name, self.total, self.unit, self.say = name, total, unit, say
        self.done = 0
        self.started = self.said = time.monotonic()

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.said >= SAID_EVERY or self.done == self.total:
            left = (now - self.started) * (self.total - self.done) / self.done
            self.say(f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, ETA {_span(left)}")
            self.said = now


def _span(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
