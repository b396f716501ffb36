"""`pixelrt pack BUNDLE FILE` and `pixelrt unpack FILE DIR`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from pixelrt.cli import debug_option, say

LINES_A_SECOND = 5


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--engines/--no-engines",
    help="With the engines built for GPUs; they run on machines like the one that built them.  [default: without]",
)
@debug_option
def pack(bundle: Path, file: Path, engines: bool) -> None:
    """Write BUNDLE to the archive FILE, for a machine without a network.

    A plain tar with checksums and licences in it; the same bundle always gives the same bytes.
    """
    from pixelrt.archive import pack as write

    start = time.perf_counter()
    sha256 = write(bundle, file, engines=engines, progress=BytesLine())
    say(f"{file}  {file.stat().st_size / 1e6:.1f} MB  {time.perf_counter() - start:.1f} s")
    say(f"manifest sha256 {sha256}")
    following = shlex.join(["pixelrt", "unpack", file.name, bundle.resolve().name])
    say(f"next, where it is copied to: {following}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@debug_option
def unpack(file: Path, folder: Path) -> None:
    """Make the folder DIR from the archive FILE of `pixelrt pack`, after checking every byte of it."""
    from pixelrt.archive_reader import unpack as read

    start = time.perf_counter()
    bundle = read(file, folder, progress=BytesLine())
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    say(f"{folder}  {size / 1e6:.1f} MB  {time.perf_counter() - start:.1f} s")
    say(f"manifest sha256 {bundle.sha256}")
    say(f"next: {shlex.join(['pixelrt', 'segment', str(folder), 'IMAGE', 'Segment the mug.'])}")


class BytesLine:
    """One line on a terminal that is rewritten: the member at hand, how much is done, how long the rest will take."""

    def __init__(self) -> None:
        self.start = self.shown = time.perf_counter()

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if not sys.stderr.isatty() or (done < total and now - self.shown < 1 / LINES_A_SECOND):
            return
        self.shown = now
        left = f"{(now - self.start) * (total - done) / done:5.0f} s left" if 0 < done < total else ""
        line = f"{name:32.32} {done / 1e6:9.1f} of {total / 1e6:.1f} MB {left}" if done < total else ""
        click.echo(f"\r\x1b[2K{line}", err=True, nl=False)
