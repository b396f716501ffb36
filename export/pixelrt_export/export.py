"""`export_bundle`: the steps every family shares.

A bundle is written beside its destination and renamed when it is complete. An export that is killed goes on where it
was when the same command is given again (`work.py`); one that is refused leaves nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pixelrt import __version__
from pixelrt.archive import LICENSES
from pixelrt.bundle import Bundle, write_manifest
from pixelrt.engines import FOLDER as ENGINES
from pixelrt.engines import foreign_to
from pixelrt.errors import InputError
from pixelrt.goldens.file import FILE, KEY
from pixelrt.manifest import MANIFEST

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.families import family_of
from pixelrt_export.job import job
from pixelrt_export.quantize.plan import ROUNDED, Settings, calibrates
from pixelrt_export.quantize.records import answered, read_records
from pixelrt_export.sink import WEIGHTS, Sink
from pixelrt_export.weight_file import WeightFile
from pixelrt_export.work import Concluded, Work, work_on

STAGES = ("encoder", "language", "pixel_decoder")
# What each flag of --precision means for the three stages.
MENU = {
    "fp32": ("fp32", "fp32", "fp32"),
    "fp16": ("fp16", "fp16", "fp16"),
    "int8": ("int8", "int8", "fp16"),
    "int4": ("fp16", "int4", "fp16"),
    "nf4": ("fp16", "nf4", "fp16"),
}
# What a stage can be stored in.
CHOICES = {
    "encoder": ("fp32", "fp16", "int8"),
    "language": ("fp32", "fp16", "int8", "int4", "nf4"),
    "pixel_decoder": ("fp32", "fp16"),
}
REJECTED = ".rejected"  # after the name of a bundle that did not pass


class Verdict(Protocol):
    """What a gate says of a finished bundle; `verify.report.Report`."""

    @property
    def passed(self) -> bool: ...
    def sentence(self) -> str: ...
    def summary(self) -> dict[str, Any]: ...
    def write(self, folder: Path) -> tuple[str, ...]:
        """Its files, into the bundle; their names."""
        ...


class Rejected(Concluded):
    """A bundle did not pass its gate: it lies whole at `folder`, which is not where it was asked for."""

    def __init__(self, folder: Path, verdict: Any) -> None:
        super().__init__(
            f"{verdict.sentence()}. The bundle is {folder}, not blessed; its report.md says more."
        )
        self.folder, self.verdict = folder, verdict


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    precision: str = "fp32",
    stages: Mapping[str, str] | None = None,
    vision_tower: str | Path | None = None,
    settings: Settings | None = None,
    gate: Callable[[Path], Verdict] | None = None,
    goldens: Callable[[Path], dict[str, Any]] | None = None,
    restart: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Export a checkpoint folder to a bundle folder and return the bundle's path.

    precision: of the stored weights, see MENU; fp32 changes nothing. stages: `encoder`, `language` or
    `pixel_decoder` -> a precision of its own. settings: of the quantisers, and who hears of progress. vision_tower:
    the CLIP folder, where it does not lie beside the checkpoint. An existing bundle at the destination is replaced
    once the new one is complete; any other folder there is left alone. goldens: writes golden outputs into the finished
    bundle; gives what its manifest says of them (`pixelrt.goldens.make`). gate: looks at the finished bundle before it
    gets its name; one that does not pass gets the name BUNDLE.rejected, and what stands at BUNDLE stays. restart: use
    nothing of what a killed export has left. note: hears, in a sentence, where something was. Raises InputError,
    Rejected.
    """
    target = Path(bundle).resolve()  # through links: the folder itself is replaced
    settings = settings or Settings()
    chosen = chosen_precision(precision, stages or {})
    rejected = target.with_name(target.name + REJECTED)
    _check_target(target)
    if gate is not None:
        _check_target(rejected)
    opened = Checkpoint.open(Path(checkpoint))
    family = family_of(str(opened.config.get("model_type")))
    sources = family.sources(opened, None if vision_tower is None else Path(vision_tower))
    if settings.head and chosen["language"] not in ROUNDED:
        raise InputError(
            f"--head {settings.head} goes with rounded layers, and the language model is asked for in "
            f"{chosen['language']}. Leave it out, or add --language int4."
        )
    if settings.head and family.TYPED:
        raise InputError(f"{checkpoint} has no head over words that could be rounded. Leave --head out.")
    records = read_records(settings.calib, family.TYPED) if calibrates(chosen, settings) else []
    drafts = [] if family.TYPED else answered(settings.calib)
    with work_on(target) as work:
        reason = work.begin(job(sources, chosen, settings, records, drafts), restart)
        if reason is not None:
            note(f"begins anew: {reason}" if reason else "goes on where an export was stopped")
        total = sum(math.prod(shape) for one in sources.values() for shape in one.shapes().values())

        def written(name: str, values: int) -> None:
            settings.progress(f"{name.partition('.')[0]} weights written", min(values, total), total)

        def found(done: int, total: int) -> None:
            settings.progress("work found checked", done, total)

        with WeightFile(work.bundle / WEIGHTS, written, work, found) as weights:
            sink = Sink(work.bundle, chosen, weights, settings, records, sources, work, drafts)
            family.write_bundle(opened, sink)
        head = {"name": target.name, "created_by": f"pixelrt {__version__}", "precision": chosen}
        if not stages:
            head["asked_precision"] = precision
        manifest = {**head, **sink.manifest, "graphs": sink.graphs}
        names = sink.names
        del sink  # and with it what calibration holds
        files = _finish(work, manifest, names, settings)
        if goldens is not None:
            try:
                manifest = {**manifest, KEY: goldens(work.bundle)}
                names = [*names, FILE]
                files = _finish(work, manifest, names, settings, files)
            except InputError as error:
                note(f"no golden outputs: {error}; TensorRT engines of this bundle cannot be verified")
        if gate is not None:
            verdict = gate(work.bundle)
            names = [*names, *verdict.write(work.bundle)]
            _finish(work, {**manifest, "verified": verdict.summary()}, names, settings, files)
            if not verdict.passed:
                _replace(rejected, work.bundle)
                raise Rejected(rejected, verdict)
        _replace(target, work.bundle)
    return Path(bundle)


def chosen_precision(precision: str, stages: Mapping[str, str]) -> dict[str, str]:
    """Stage -> precision."""
    if precision not in MENU:
        raise InputError(f"--precision is {precision!r}. Choose one of: {', '.join(MENU)}.")
    chosen = dict(zip(STAGES, MENU[precision], strict=True)) | dict(stages)
    for stage, wanted in chosen.items():
        if wanted not in CHOICES.get(stage, ()):
            choices = ", ".join(CHOICES.get(stage, ("nothing: there is no such stage",)))
            raise InputError(f"{stage} cannot be stored in {wanted!r}. Choose one of: {choices}.")
    return chosen


def _finish(
    work: Work,
    manifest: dict[str, Any],
    names: list[str],
    settings: Settings,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the manifest, last of all; what a killed run has left besides goes. Gives its `files`; known: of those that
    were hashed in this run."""
    for file in work.bundle.iterdir():
        if file.name not in names:
            file.unlink()

    def hashed(done: int, total: int) -> None:
        settings.progress("bundle hashed", done, total)

    return write_manifest(work.bundle, manifest, names, hashed, known)


def _check_target(target: Path) -> None:
    """A folder that export may replace: none, an empty one, or a bundle with nothing in it but what pixelrt made: its
    files, its engines, and the licences that `pixelrt unpack` puts beside them."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    refusal = f"{target} exists and is not a bundle; export does not overwrite it. Give another folder."
    try:
        listed = Bundle.read(target, verify=False).manifest["files"]
    except InputError:
        raise InputError(refusal) from None
    own = {*listed, MANIFEST, LICENSES, ENGINES}
    foreign = sorted([*(file.name for file in target.iterdir() if file.name not in own), *foreign_to(target)])
    if foreign:
        raise InputError(
            f"{target} holds {', '.join(foreign[:3])}, which pixelrt did not write and export would delete. "
            "Move it away, or give another folder."
        )


def _replace(target: Path, partial: Path) -> None:
    """Put the finished folder in place; an older bundle goes only once the new one is there.

    Its engines stay: those of graphs that are as they were may be run on, the others are refused by their fingerprints
    until they are built again, and the timing cache makes that shorter.
    """
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
        if (old / ENGINES).is_dir():
            (old / ENGINES).rename(partial / ENGINES)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            if (partial / ENGINES).is_dir():
                (partial / ENGINES).rename(old / ENGINES)
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
