"""`pixelrt verify BUNDLE`: without a checkpoint, against the golden outputs that the bundle holds.

`pixelrt verify BUNDLE CHECKPOINT` is the export package's (pixelrt_export/cli.py), which comes here where no checkpoint
is given.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelrt.backends import BACKENDS
from pixelrt.cli import debug_option, say
from pixelrt.errors import MissingExtra

if TYPE_CHECKING:
    from pixelrt.goldens.check import Finding

backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Without CHECKPOINT: what to verify here; auto is what would run the bundle.",
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@backend_option
@debug_option
def verify(bundle: Path, checkpoint: Path | None, backend: str) -> None:
    """Compare what BUNDLE gives on this machine with the golden outputs that it holds, stage by stage.

    TensorRT engines that agree are run from then on. Exit code 1 where a stage differs by more than rounding
    explains; the line names the first. With CHECKPOINT (needs pixelrt[export]) the bundle is compared with that.
    """
    if checkpoint is not None:
        raise MissingExtra("the comparison with a checkpoint", "export")
    verify_here(bundle, backend)


def verify_here(folder: Path, backend: str) -> None:
    """Raises InputError: a bundle without golden outputs, a backend that cannot run it; Exit where it differs."""
    from pixelrt.backends import open_backend
    from pixelrt.bundle import Bundle
    from pixelrt.cli.progress import checking
    from pixelrt.goldens.check import check, first_fault
    from pixelrt.goldens.engines import summary, verify_engines
    from pixelrt.goldens.file import read_goldens
    from pixelrt.segmenter import open_bundle

    start = time.perf_counter()
    with checking(folder) as progress:
        bundle = Bundle.read(folder, progress=progress)
    read_goldens(bundle)  # refused before engines are loaded
    opened = open_backend(bundle, backend, unverified=True)
    say(f"{folder}: golden outputs on {opened.name}")
    if hasattr(opened, "engines"):  # TensorRT's: a verdict is kept beside them
        verdict = verify_engines(bundle, opened, say_stage)
        passed, words = verdict.passed, verdict.words
    else:
        found = check(open_bundle(bundle, opened), say_stage)
        fault = first_fault(found)
        passed, words = fault is None, summary(found) if fault is None else fault.sentence()
    say(f"{'passed' if passed else 'failed'}: {words}  {time.perf_counter() - start:.1f} s")
    if not passed:
        raise click.exceptions.Exit(1)
    say(f"next: {shlex.join(['pixelrt', 'segment', str(folder), 'IMAGE', 'Segment the ...'])}")


def say_stage(stage: str, findings: list[Finding], line: Callable[[str], None] = say) -> None:
    """One line a stage: what is nearest to its limit, or beyond it."""
    if findings:
        worst = max(findings, key=lambda finding: (not finding.passed, finding.error - finding.limit))
        mark = "ok" if worst.passed else "NO"
        figures = worst.words or f"off by {worst.error:.2g}, may be {worst.limit:g}"
        line(f"{stage:<14} {len(findings):>3} compared  {f'{worst.where}: {figures}':<60}  {mark}")
