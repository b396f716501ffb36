"""What follows a build: the engines run the bundle's golden questions, and a stage that fails is taken in fp16.

Nothing is blessed on trust: where they cannot run here, the verdict says so and `pixelrt.load` passes them over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pixelrt.backends import open_backend
from pixelrt.build.builder import Site, Wish, build_part
from pixelrt.build.engine_folder import opened
from pixelrt.build.parts import GRAPHS, fallback_of, fp16_ways, parts_of
from pixelrt.build.profiles import Sizes
from pixelrt.bundle import Bundle
from pixelrt.engines import Engines
from pixelrt.errors import InputError
from pixelrt.goldens.check import Finding
from pixelrt.goldens.engines import verify_engines
from pixelrt.goldens.file import read_goldens
from pixelrt.verdict import Verdict, read_verdict, verdict_on, verified, verify_command, write_verdict

ROUNDED = ("int8", "int4")
Say = Callable[[str], None]
Tell = Callable[[str, float, str], None]


def verify_built(
    bundle: Bundle,
    site: Site,
    wish: Wish,
    engines: Engines,
    *,
    say: Say = lambda line: None,
    tell: Tell = lambda graph, part, phase: None,
    stage: Callable[[str, list[Finding]], None] = lambda stage, found: None,
) -> Verdict:
    """Verify engines where they were built; with a fallback bundle, once more for each stage that is replaced.

    A verdict that stands already is not made again.
    """
    why = _why_not(bundle, site, engines)
    if why:
        return _unverified(bundle, engines, why)
    replaced: set[str] = set()
    while True:
        try:
            backend: Any = open_backend(bundle, site.library.flavour, unverified=True)
            if backend.engines.folder.resolve() != engines.folder.resolve():
                return _unverified(
                    bundle, engines, f"{backend.engines.folder} is newer, and run in its place"
                )
            if verified(backend.engines, bundle, backend.device.name):
                say("verified before, with the same golden outputs")
                known = read_verdict(engines.folder)
                assert known is not None
                return known
            verdict = verify_engines(bundle, backend, stage)
        except InputError as error:  # no PyCUDA, engines too small for the golden questions
            return _unverified(bundle, engines, str(error))
        graph = verdict.stage
        record = engines.records.get(graph)
        if verdict.passed or record is None or record.precision not in ROUNDED or wish.fallback is None:
            return verdict
        if graph in replaced:
            return verdict
        replaced.add(graph)
        del backend  # the engine that is replaced is not held
        say(f"{graph:<14} {record.precision} failed ({verdict.words}); fp16 from {wish.fallback}")
        engines = _replaced(
            bundle, site, wish, graph, f"{record.precision}: failed, {verdict.words}", say, tell
        )


def advice(bundle: Bundle, site: Site, engines: Engines, verdict: Verdict) -> str:
    """What to do about a verdict that is not `passed`."""
    verify = verify_command(bundle.path)
    if not _here(site):
        return f"copy {bundle.path} to the {site.target.name} and run there: {verify}"
    if verdict.passed is None:
        return f"see to that, then run: {verify}"
    record = engines.records.get(verdict.stage)
    if record is not None and record.precision in ROUNDED:
        return fp16_ways(bundle, bundle.manifest["graphs"][record.source]["stage"])
    return "use --backend onnxruntime, and report this."


def _here(site: Site) -> bool:
    return site.gpu is not None and site.gpu.architecture == site.target.architecture


def _why_not(bundle: Bundle, site: Site, engines: Engines) -> str:
    """Why engines cannot be run here; "" where they can."""
    if not _here(site):
        return f"built for another machine ({site.target.architecture})"
    missing = [graph for graph in GRAPHS if graph not in engines.records]
    if missing:
        return f"no engine of {missing[0]} is built yet"
    try:
        read_goldens(bundle)
    except InputError as error:
        return str(error)
    return ""


def _unverified(bundle: Bundle, engines: Engines, why: str) -> Verdict:
    verdict = verdict_on(engines, bundle, None, why)
    write_verdict(engines.folder, verdict)
    return verdict


def _replaced(
    bundle: Bundle, site: Site, wish: Wish, graph: str, reason: str, say: Say, tell: Tell
) -> Engines:
    """The engines, `graph` among them from the fallback bundle. Raises InputError where that is refused too."""
    assert wish.fallback is not None
    other = fallback_of(bundle, wish.fallback)
    sizes = Sizes.of(bundle.manifest, **wish.sizes)
    part = parts_of(
        other, site.library, sizes, activations=wish.activations, only=[graph], stands_for=bundle
    )[0]
    with opened(site.folder, site.target.name) as folder:
        outcome = build_part(site, wish, folder, part, reason, say, tell)
        if outcome.done is None:
            raise InputError(
                f"{graph} failed its verification, and {site.words} refuses it in {part.precision}: "
                f"{outcome.refused[0]}. Run it with --backend onnxruntime, and report this."
            )
        return folder.engines
