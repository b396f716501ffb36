"""`pixelrt run CHECKPOINT_OR_BUNDLE`: what `./build_engines.sh` runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pixelrt.cli import debug_option, main, printable, say
from pixelrt.cli.query_options import QueryOptions, query_of, query_options
from pixelrt.errors import InputError
from pixelrt.queries import query_in_words

CLIP = "clip/"  # before the names of the CLIP folder's files in a manifest's provenance
HASHED_BYTES = 64 << 20  # larger files are compared by their times: hashing 14 GB takes a minute
SAMPLES = Path(__file__).resolve().parents[3] / "calib_data"  # in a checkout; absent from a wheel


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="Picture to ask about.  [default: a sample]")
@click.option("--prompt", help="Question to ask.  [default: the sample's]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the answer.  [default: ./pixelrt-out]"
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Where to export to.  [default: bundles/NAME]"
)
@click.option("--vision-tower", type=click.Path(path_type=Path), help="As for `pixelrt export`.")
@click.option("--precision", help="As for `pixelrt export`.")
@click.option("--engines", is_flag=True, help="Build TensorRT engines too, where TensorRT and a GPU are.")
@query_options
@debug_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
    source: Path,
    image: Path | None,
    prompt: str | None,
    out: Path | None,
    bundle: Path | None,
    vision_tower: Path | None,
    precision: str | None,
    engines: bool,
    **asked: Any,
) -> None:
    """Export a checkpoint if need be, then ask its bundle about a picture, with --prompt or a --task.

    A bundle that was made from the same files is used again.
    """
    if asked["task"] is None:
        image, prompt = _question(image, prompt)
    else:
        image = image or _sample()[0]
    words = query_in_words(query_of(prompt, QueryOptions(**asked)))  # refused before anything is exported
    if (source / "manifest.json").is_file():
        folder = source
    elif source.is_dir():
        folder = _short(bundle or Path("bundles") / source.resolve().name)
        given = {"vision_tower": vision_tower, "precision": precision}
        if made_from(folder, source, vision_tower, precision):
            say(f"{folder}  made from {_short(source)} before, used again")
        else:
            options = {name: value for name, value in given.items() if value is not None}
            ctx.meta["pixelrt.next"] = False
            ctx.invoke(_command(ctx, "export"), checkpoint=_short(source), bundle=folder, **options)
    else:
        raise InputError(f"{source} is not a folder. Give the folder of a checkpoint or of a bundle.")
    if engines and _can_build():
        ctx.invoke(_command(ctx, "build"), bundle=_short(folder))
    spoken = "answer:   " if asked["task"] is None else "\n"  # a task is answered with masks alone
    click.echo(printable(f"\nimage:    {_short(image)}\nquestion: {words}\n{spoken}"), nl=False)
    where = {} if out is None else {"out": _short(out)}
    question = {"image": _short(image), "prompt": prompt, **asked}
    ctx.invoke(_command(ctx, "segment"), bundle=_short(folder), **question, **where)


def made_from(folder: Path, checkpoint: Path, vision_tower: Path | None, precision: str | None) -> bool:
    """Whether the bundle `folder` was made from just these files, at this precision, by this version.

    Small files are compared by hash; large ones may not be newer than the bundle. A CLIP folder that is
    neither given nor called `clip` in or beside the checkpoint is not looked at.
    """
    from pixelrt import __version__
    from pixelrt.bundle import Bundle, sha256_of

    try:
        read = Bundle.read(folder, verify=False)
    except InputError:
        return False
    manifest: dict[str, Any] = read.manifest
    if manifest.get("created_by") != f"pixelrt {__version__}":
        return False
    if manifest.get("asked_precision") != (precision or "fp32"):
        return False
    towers = [vision_tower] if vision_tower else [checkpoint / "clip", checkpoint.parent / "clip"]
    tower = next((place for place in towers if place.is_dir()), None)
    recorded: dict[str, str] = manifest.get("provenance", {}).get("files", {})
    made = (folder / "manifest.json").stat().st_mtime

    def same(file: Path, sha256: str) -> bool:
        if not file.is_file():
            return False
        about = file.stat()
        return about.st_mtime < made if about.st_size > HASHED_BYTES else sha256_of(file) == sha256

    files = [(checkpoint / name, sha256) for name, sha256 in recorded.items() if not name.startswith(CLIP)]
    if tower is not None:
        clip = [
            (name.removeprefix(CLIP), sha256) for name, sha256 in recorded.items() if name.startswith(CLIP)
        ]
        files += [(tower / name, sha256) for name, sha256 in clip]
    return bool(files) and all(same(file, sha256) for file, sha256 in files)


def _can_build() -> bool:
    from pixelrt.gpu import find_gpu
    from pixelrt.tensorrt import TENSORRT, installed

    return find_gpu() is not None and installed(TENSORRT)


def _question(image: Path | None, prompt: str | None) -> tuple[Path, str]:
    """What was given; otherwise the first sample of the checkout."""
    if image is None:
        picture, question = _sample()
        return picture, prompt or question
    if prompt is None:
        raise InputError(f'No question about {image}. Give one: --prompt "Segment the mug."')
    return image, prompt


def _sample() -> tuple[Path, str]:
    """The first picture of calib_data and its question."""
    samples = SAMPLES / "prompts.jsonl"
    if not samples.is_file():
        raise InputError(
            f"{SAMPLES} holds no samples here. Give a picture and a question: --image P --prompt T"
        )
    with samples.open(encoding="utf-8") as lines:
        sample = json.loads(next(lines))
    return SAMPLES / sample["image"], sample["prompt"]


def _command(ctx: click.Context, name: str) -> click.Command:
    command = main.get_command(ctx, name)
    if command is None:
        raise LookupError(f"pixelrt has no command {name!r}")
    return command


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies in it, so that what is printed can be read and typed."""
    return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path
