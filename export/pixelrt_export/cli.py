"""`pixelrt export`: joins the runtime's command line through the entry-point group `pixelrt.commands`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click
from pixelrt.cli import debug_option, say

# As in pixelrt_export.export, which is not imported before it is needed.
PRECISIONS = click.Choice(["fp32", "fp16", "int8", "int4", "nf4"])
ENCODER, LANGUAGE = click.Choice(["fp32", "fp16", "int8"]), PRECISIONS
PIXEL_DECODER = click.Choice(["fp32", "fp16"])
BLOCKS = click.Choice(["32", "64", "128"])


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision", type=PRECISIONS, default="fp32", show_default=True, help="Of the stored weights."
)
@click.option("--encoder", type=ENCODER, help="Precision of this stage alone.")
@click.option("--language", type=LANGUAGE, help="Precision of this stage alone.")
@click.option("--pixel-decoder", type=PIXEL_DECODER, help="Precision of this stage alone.")
@click.option(
    "--block", type=BLOCKS, default="32", show_default=True, help="Of int4: inputs that share a scale."
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    help="Folder of pictures like yours, with a prompts.jsonl if you like, to calibrate with "
    "(default: calib_data of the project).",
)
@click.option(
    "--vision-tower",
    type=click.Path(path_type=Path),
    help="Folder of the CLIP checkpoint, where it does not lie beside CHECKPOINT.",
)
@debug_option
def export(
    checkpoint: Path,
    bundle: Path,
    precision: str,
    encoder: str | None,
    language: str | None,
    pixel_decoder: str | None,
    block: str,
    calib: Path | None,
    vision_tower: Path | None,
) -> None:
    """Turn a CHECKPOINT folder into a BUNDLE folder.

    fp32 changes nothing; fp16 halves the bundle. int8 rounds the encoder's weights and activations and the
    language model's weights, int4 and nf4 the language model's weights; all the rest is then fp16.
    """
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    stages = {"encoder": encoder, "language": language, "pixel_decoder": pixel_decoder}
    start = time.perf_counter()
    path = export_bundle(
        checkpoint,
        bundle,
        precision=precision,
        stages={stage: value for stage, value in stages.items() if value},
        vision_tower=vision_tower,
        settings=Settings(calib=calib, block=int(block), progress=CountLine("calibrating")),
        progress=ProgressLine(),
    )
    size = sum(file.stat().st_size for file in path.iterdir())
    say(f"{path}  {size / 1e6:.1f} MB  {time.perf_counter() - start:.1f} s")
    if click.get_current_context().meta.get("pixelrt.next", True):  # `pixelrt run` has a better one
        say(f"next: {shlex.join(['pixelrt', 'segment', str(path), 'IMAGE', 'Segment the ...'])}")


class ProgressLine:
    """One line on a terminal that is rewritten: what is written, how much of it, how long it will take."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        seconds = time.perf_counter() - self.start
        left = f"{seconds * (total - done) / done:5.0f} s left" if 0 < done < total else ""
        line = f"{what:32.32} {done / 1e6:9.1f} of {total / 1e6:.1f} MB {left}"
        click.echo(f"\r\x1b[2K{line}" + ("\r\x1b[2K" if what == "manifest.json" else ""), err=True, nl=False)


class CountLine:
    """The same for steps that are counted."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.start, self.what = time.perf_counter(), ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if what != self.what:
            self.start, self.what = time.perf_counter(), what
        seconds = time.perf_counter() - self.start
        left = f"{seconds * (total - done) / done:5.0f} s left" if 0 < done < total else ""
        line = f"{self.doing}: {done} of {total} {what} {left}" if done < total else ""
        click.echo(f"\r\x1b[2K{line}", err=True, nl=False)
