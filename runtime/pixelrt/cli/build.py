"""`pixelrt build BUNDLE`."""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path

import click

from pixelrt.cli import debug_option, say
from pixelrt.errors import InputError

UNITS = {
    "": 1 << 20,
    "B": 1,
    "K": 1 << 10,
    "KIB": 1 << 10,
    "M": 1 << 20,
    "MIB": 1 << 20,
    "G": 1 << 30,
    "GIB": 1 << 30,
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", default="auto", show_default=True,
              help="Where the engines will run: orin-nano, orin-nx, agx-orin, thor, a100, h100, h200, b200, "
                   "rtx-ampere, rtx-ada, rtx-blackwell, sm_XX, or auto for the GPU here.")  # fmt: skip
@click.option("--backend", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", show_default=True,
              help="TensorRT builds for the GPU here, TensorRT-RTX also for others and without one.")  # fmt: skip
@click.option(
    "--graph", "graphs", multiple=True, help="Build this one alone: encoder, language, pixel_decoder."
)
@click.option(
    "--cache-length", type=click.IntRange(16), help="Tokens of prompt, picture and answer together."
)
@click.option("--prefill", type=click.IntRange(16), help="Tokens of prompt and picture.")
@click.option("--max-batch", "batch", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--max-targets", "targets", type=click.IntRange(1, 512), default=32, show_default=True,
              help="Masks of one answer.")  # fmt: skip
@click.option("--max-classes", "conditions", type=click.IntRange(1, 4096), default=256, show_default=True,
              help="Classes, sentences or regions of one prompt.")  # fmt: skip
@click.option("--activations", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@click.option("--memPoolSize", "pool", metavar="workspace:N",
              help="Memory on the GPU that the builder may use, in MiB or with a unit: workspace:2G.")  # fmt: skip
@click.option("--builderOptimizationLevel", "level", type=click.IntRange(0, 5),
              help="Effort: 0 is the shortest build, 5 the longest.")  # fmt: skip
@click.option("--useDLACore", "dla", type=int, help="Refused, and says why.")
@click.option("--fallback", type=click.Path(path_type=Path),
              help="A bundle of the same checkpoint in fp16, for what is refused in int8 or int4.")  # fmt: skip
@click.option("--plugins", is_flag=True,
              help="Put our CUDA kernels for deformable attention and scale fusion into the engines: TensorRT from "
                   "10.9, needs nvcc; not yet run on a GPU.")  # fmt: skip
@click.option("--dry-run", "dry", is_flag=True, help="Say what would be built and whether it can be.")
@click.option("--force", is_flag=True, help="Build although the verdict says no.")
@debug_option
def build(
    bundle: Path,
    target: str,
    backend: str,
    graphs: tuple[str, ...],
    cache_length: int | None,
    prefill: int | None,
    batch: int,
    targets: int,
    conditions: int,
    activations: str,
    pool: str | None,
    level: int | None,
    dla: int | None,
    fallback: Path | None,
    plugins: bool,
    dry: bool,
    force: bool,
) -> None:
    """Build BUNDLE's graphs into TensorRT engines, in BUNDLE/engines/TARGET, and verify them.

    First comes a verdict: disk, memory, operators. Finished engines are kept, so that the same command goes on after
    Ctrl-C or a power cut. On the GPU that they are for, they then answer the bundle's golden questions; exit code 1
    where a stage is off by more than rounding. Engines that did not pass are not run.
    """
    from pixelrt.build.builder import Wish, build_engines, site_of
    from pixelrt.build.verification import advice, verify_built
    from pixelrt.bundle import Bundle
    from pixelrt.cli.verify import say_stage
    from pixelrt.engines import read_engines

    if dla is not None:
        raise InputError(
            "These graphs do not run on a DLA (docs/tensorrt.md says why). Leave out --useDLACore."
        )
    wanted = {
        "cache": cache_length,
        "prefill": prefill,
        "batch": batch,
        "targets": targets,
        "conditions": conditions,
    }
    wish = Wish(
        target=target,
        backend=backend,
        only=graphs,
        activations={"fp16": "float16", "fp32": "float32"}[activations],
        workspace=workspace_of(pool),
        level=level,
        fallback=fallback,
        force=force,
        plugins=plugins,
        sizes={name: value for name, value in wanted.items() if value is not None},
    )
    read = Bundle.read(bundle)
    site = site_of(read, wish)
    say(f"{bundle}: {site.words}")
    meter = Meter()
    start = time.perf_counter()
    try:
        engines = build_engines(read, site, wish, say=meter.line, tell=meter, dry=dry)
        if dry:
            return
        verdict = verify_built(read, site, wish, engines, say=meter.line, tell=meter, stage=say_stage)
        engines = read_engines(engines.folder)  # a stage may have been replaced
    except KeyboardInterrupt:
        meter.line("stopped; finished engines are kept, and the same command goes on from there")
        raise
    finally:
        meter.clear()
    size = sum(record.bytes for record in engines.records.values())
    say(
        f"\n{len(engines.records)} engines, {size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s: {engines.folder}"
    )
    said = {True: "passed", False: "failed", None: "not verified"}[verdict.passed]
    say(f"{said}: {verdict.words}")
    if verdict.passed:
        say(f"next: {shlex.join(['pixelrt', 'segment', str(bundle), 'IMAGE', 'PROMPT'])}")
        return
    say(f"next: {advice(read, site, engines, verdict)}")
    if verdict.passed is False:
        raise click.exceptions.Exit(1)


def workspace_of(text: str | None) -> int | None:
    """Bytes of trtexec's `workspace:N`, N in MiB or with a unit. Raises InputError."""
    if text is None:
        return None
    found = re.fullmatch(r"workspace:([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if found is None or found[2].upper() not in UNITS or not float(found[1]) > 0:
        raise InputError(
            f"--memPoolSize is {text!r}. Give MiB, or a number with a unit: workspace:2048, workspace:2G."
        )
    return int(float(found[1]) * UNITS[found[2].upper()])


class Meter:
    """Progress of one graph: a line that is written over on a terminal, else a line for every tenth."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.graph, self.start, self.told, self.width = "", 0.0, 0.0, 0

    def __call__(self, graph: str, part: float, phase: str) -> None:
        now = time.perf_counter()
        if graph != self.graph or part == 0.0:
            self.graph, self.start, self.told = graph, now, -1.0
        if not self.live and part < self.told + 0.1 and part > 0.0:
            return
        self.told = part
        text = f"{graph:<14} {part:>4.0%}  {phase}{time_left(now - self.start, part)}"
        if self.live:
            click.echo("\r" + text[:100].ljust(self.width), nl=False, err=True)
            self.width = len(text[:100])
        else:
            click.echo(text, err=True)

    def line(self, text: str) -> None:
        self.clear()
        say(text)

    def clear(self) -> None:
        if self.width:
            click.echo("\r" + " " * self.width + "\r", nl=False, err=True)
            self.width = 0


def time_left(spent: float, part: float) -> str:
    """`, about 3 min left`; nothing while too little is done to tell."""
    if spent < 2 or not 0.02 <= part < 1:
        return ""
    seconds = spent / part - spent
    return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"
