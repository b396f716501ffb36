"""`build_engines`: a bundle's graphs to engines in BUNDLE/engines/TARGET, one process each, finished ones kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pixelrt_kernels.build import compiler
from pixelrt_kernels.library import DEVICE, source_hash

from pixelrt.build import plugins
from pixelrt.build.engine_folder import TIMING, EngineFolder, opened
from pixelrt.build.parts import Part, fallback_of, parts_of, refusal
from pixelrt.build.preflight import Finding, available_memory, examine
from pixelrt.build.process import Outcome, Tell, run_job
from pixelrt.build.profiles import Sizes
from pixelrt.build.targets import Target, find_target
from pixelrt.build.worker import Job
from pixelrt.bundle import Bundle
from pixelrt.engines import EngineRecord, Engines, Here, folder_of
from pixelrt.errors import InputError
from pixelrt.gpu import Gpu, find_gpu
from pixelrt.onnx_file import operators
from pixelrt.tensorrt import Library, open_library


@dataclass(frozen=True)
class Wish:
    """What to build. backend: `auto`, `tensorrt`, `tensorrt-rtx`. only: names of graphs, none for all.

    workspace: bytes the builder may use on the GPU. level: its effort, 0 to 5. fallback: a bundle of the same
    checkpoint, for the stages that the device refuses. force: go on against the verdict. plugins: our kernels in place
    of their functions (plugins.py).
    """

    target: str = "auto"
    backend: str = "auto"
    only: Sequence[str] = ()
    activations: str = "float16"
    workspace: int | None = None
    level: int | None = None
    fallback: Path | None = None
    force: bool = False
    plugins: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # keyword arguments of Sizes.of


@dataclass(frozen=True)
class Site:
    """Where the build runs, and for what."""

    library: Library
    gpu: Gpu | None
    target: Target
    folder: Path
    plugins: bool = False

    @property
    def words(self) -> str:
        known = "" if self.target.name == self.target.architecture else f" ({self.target.architecture})"
        return f"{self.library.title} for {self.target.name}{known}"

    @property
    def here(self) -> Here:
        """What this machine would run an engine with."""
        architecture = self.gpu.architecture if self.gpu else None
        return Here(
            self.library.flavour,
            self.library.version,
            self.library.cuda,
            architecture,
            source_hash(DEVICE),
        )


def site_of(bundle: Bundle, wish: Wish) -> Site:
    """Raises InputError: no TensorRT, an old one, or one that does not build for the target."""
    gpu, backend = find_gpu(), wish.backend
    if backend == "auto" and gpu is None:
        # TensorRT builds for the GPU it runs on, so that RTX is of use here, and it alone.
        try:
            library = open_library("tensorrt-rtx")
        except InputError:
            library = open_library("auto")
    else:
        library = open_library(backend)
    target = find_target(wish.target, library, gpu)
    if wish.plugins and not (plugins.possible(library) and compiler(DEVICE)):
        raise InputError(
            f"--plugins needs TensorRT {'.'.join(map(str, plugins.SINCE))} or newer with its Python plugins, and nvcc; "
            f"{library.title} is here, and {'nvcc' if compiler(DEVICE) else 'no nvcc'}. Leave it out."
        )
    return Site(library, gpu, target, folder_of(bundle.path, target.name, library.flavour), wish.plugins)


def build_engines(
    bundle: Bundle,
    site: Site,
    wish: Wish,
    *,
    say: Callable[[str], None] = lambda line: None,
    tell: Callable[[str, float, str], None] = lambda graph, part, phase: None,
    dry: bool = False,
) -> Engines:
    """Build what is not yet there. say: takes lines for people. tell: takes a graph, the part of it done, the phase.

    dry: stop after the verdict. Raises InputError: the verdict, or the graphs that TensorRT refuses, once all others
    are built.
    """
    sizes = Sizes.of(bundle.manifest, **wish.sizes)
    other = fallback_of(bundle, wish.fallback) if wish.fallback else None
    parts = parts_of(bundle, site.library, sizes, activations=wish.activations, only=wish.only)
    second = (
        parts_of(other, site.library, sizes, activations=wish.activations, only=wish.only, stands_for=bundle)
        if other
        else []
    )
    spare = {part.graph: part for part in second}
    with opened(site.folder, site.target.name) as folder:
        kept = {part.graph for part in parts if _kept(folder, site, part, spare.get(part.graph))}
        todo = [part for part in parts if part.graph not in kept]
        for graph in sorted(kept):
            say(f"{graph:<14} finished before, kept")
        if todo:
            refused = _preflight(bundle, site, wish, folder, todo, spare, say)
            if dry:
                return folder.engines
            for part in todo:
                if part.graph not in refused:
                    outcome = build_part(site, wish, folder, part, "", say, tell)
                    if outcome.done is None:
                        refused[part.graph] = outcome.refused
            _use_spares(bundle, site, wish, folder, todo, refused, spare, say, tell)
        return folder.engines


def _kept(folder: EngineFolder, site: Site, part: Part, spare: Part | None) -> bool:
    return any(folder.holds(_record(site, choice)) for choice in (part, spare) if choice is not None)


def _preflight(
    bundle: Bundle,
    site: Site,
    wish: Wish,
    folder: EngineFolder,
    todo: list[Part],
    spare: dict[str, Part],
    say: Callable[[str], None],
) -> dict[str, list[str]]:
    """Print the verdict; gives graph -> why its parser refuses it. Raises InputError where nothing can be built."""
    findings = examine(todo, site.target, folder.path, wish.workspace, available_memory())
    for finding in findings:
        say(finding.line())
    refused: dict[str, list[str]] = {}
    for part in todo:
        outcome = run_job(_job(site, wish, folder, part, dry=True), lambda done, phase: None)
        if outcome.done is None:
            refused[part.graph] = outcome.refused
            words = f"{part.precision}, {outcome.refused[0]}"
        else:
            words = (
                f"{part.precision}, {outcome.done['layers']} layers, {part.weights / 1e6:.1f} MB of weights"
            )
        say(Finding(part.graph, words, outcome.done is not None, part.graph not in spare).line())
        for reason in outcome.refused[1:]:
            say(f"{'':<14} {reason}")
    wrong = [finding for finding in findings if finding.fatal]
    if wrong and not wish.force:
        raise InputError(
            f"{site.words}: {wrong[0].what} will not do ({wrong[0].words.strip()}). Make room, build one graph at a "
            "time with --graph NAME, or go on all the same with --force."
        )
    return refused


def _use_spares(
    bundle: Bundle,
    site: Site,
    wish: Wish,
    folder: EngineFolder,
    todo: list[Part],
    refused: dict[str, list[str]],
    spare: dict[str, Part],
    say: Callable[[str], None],
    tell: Callable[[str, float, str], None],
) -> None:
    """What was refused, from the other bundle. Raises InputError with a sentence for each graph that stays refused."""
    sentences = []
    for part in todo:
        reasons = refused.get(part.graph)
        if reasons is None:
            continue
        sentence = refusal(part, bundle, site.words, reasons)
        second = spare.get(part.graph)
        if second is None or second.precision == part.precision:
            sentences.append(sentence)
            continue
        say(
            f"{part.graph:<14} {part.precision} refused ({reasons[0]}); {second.precision} from {wish.fallback}"
        )
        outcome = build_part(site, wish, folder, second, f"{part.precision}: {reasons[0]}", say, tell)
        if outcome.done is None:
            sentences.append(refusal(second, bundle, site.words, outcome.refused))
    if sentences:
        raise InputError(" ".join(sentences))


def build_part(
    site: Site,
    wish: Wish,
    folder: EngineFolder,
    part: Part,
    refused: str,
    say: Callable[[str], None],
    tell: Callable[[str, float, str], None],
) -> Outcome:
    """One engine, put on the list where it is made. refused: why a smaller precision is not taken."""
    hear: Tell = lambda done, phase: tell(part.graph, done, phase)  # noqa: E731
    hear(0.0, "reading the graph")
    start = time.perf_counter()
    outcome = run_job(_job(site, wish, folder, part, dry=False), hear)
    if outcome.done is None:
        return outcome
    seconds = time.perf_counter() - start
    blank = _record(site, part)
    record = folder.put(
        replace(blank, layers=outcome.done["layers"], seconds=round(seconds, 1), refused=refused)
    )
    folder.keep_timing()
    say(
        f"{part.graph:<14} {part.precision:<5} {record.bytes / 1e6:>9.1f} MB  {record.layers:>5} layers  "
        f"{seconds:>6.1f} s  {outcome.done['peak'] / 1e9:.1f} GB of memory  {folder.path / record.file}"
    )
    return outcome


def _job(site: Site, wish: Wish, folder: EngineFolder, part: Part, dry: bool) -> Job:
    ranges = {
        profile: {name: (list(low), list(best), list(most)) for name, (low, best, most) in inputs.items()}
        for profile, inputs in part.profiles.items()
    }
    return Job(
        site.library.flavour,
        site.target.architecture,
        str(part.file.path.resolve()),
        None if dry else str(folder.partial(part.engine).resolve()),
        part.cache_length,
        ranges,
        wish.workspace,
        wish.level,
        str(folder.path.resolve() / TIMING),
        str(folder.partial(TIMING).resolve()),
        _has_plugins(site, part),
    )


def _has_plugins(site: Site, part: Part) -> bool:
    return site.plugins and not plugins.OPERATORS.isdisjoint(operators(part.file.path.read_bytes()))


def _record(site: Site, part: Part) -> EngineRecord:
    """What the list will say of this part; bytes, hash, layers and time are not known yet."""
    return EngineRecord(
        graph=part.graph,
        source=part.source,
        file=part.engine,
        bytes=0,
        sha256="",
        fingerprint=part.fingerprint,
        stands_for=part.stands_for,
        precision=part.precision,
        activations=part.file.activations,
        flavour=site.library.flavour,
        version=site.library.version,
        cuda=site.library.cuda,
        architecture=site.target.architecture,
        # Else our operators are functions of standard ones, which TensorRT inlines: none of our kernels is inside.
        kernels=source_hash(DEVICE) if _has_plugins(site, part) else None,
        profiles=part.profiles,
        cache_length=part.cache_length,
        inputs=part.values(part.file.inputs),
        outputs=part.values(part.file.outputs),
        layers=0,
        seconds=0.0,
    )
