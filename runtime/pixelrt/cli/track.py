"""`pixelrt track BUNDLE FRAMES --mask first.png`, or `--prompt "Segment the mug."`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.cli import debug_option
from pixelrt.cli.progress import checking
from pixelrt.errors import InputError

if TYPE_CHECKING:
    from pixelrt.segmenter import Segmenter

OUT = "pixelrt-out"
Named = Iterator[tuple[str, NDArray[np.uint8]]]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("frames", type=click.Path(path_type=Path))
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    help="The objects in the first frame: a label map, one value or colour an object, 0 or black for none.",
)
@click.option("--prompt", help="In place of --mask: what to look for, asked now and then.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Frames from one question to the next at most; 1 asks about every frame.",
)
@click.option(
    "--drift",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Ask again where a mask's overlap with the frame before, or its score, falls below this share.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder for overlays/NAME.png, labels/NAME.png and, with --prompt, answers.jsonl.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Look for objects as they were in the frame before, or always as in the first.",
)
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@debug_option
def track(
    bundle: Path,
    frames: Path,
    mask: Path | None,
    prompt: str | None,
    every: int,
    drift: float,
    out: Path,
    memory: bool,
    backend: str,
) -> None:
    """Follow objects through FRAMES, a folder of pictures in order or a video file.

    Writes for every frame an overlay and a label map: with the values of --mask (or 1, 2, … for its colours), or
    with the numbers of the answer's masks. See docs/video.md.
    """  # fmt: skip
    import pixelrt
    from pixelrt.frames import read_frames
    from pixelrt.segmenter import Tracker

    if (mask is None) == (prompt is None):
        raise InputError(
            "Give --mask, a picture of the objects in the first frame, or --prompt, what to look for."
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Give a folder.")
    pictures = read_frames(frames)
    marked = None if mask is None else objects_of(mask)
    with checking(bundle) as progress:
        segmenter = pixelrt.load(bundle, backend=backend, progress=progress)
    if marked is not None and not isinstance(segmenter, Tracker):
        family = segmenter.bundle.manifest["family"]
        raise InputError(
            f"{bundle} is of family {family!r}, which does not follow objects that are marked. Give it a --prompt."
        )
    first = next(pictures, None)
    if first is None:
        raise InputError(f"{frames} holds no frame. Give another video or a folder of frames.")
    for folder in (out / "overlays", out / "labels"):
        folder.mkdir(parents=True, exist_ok=True)
    pictures = chain([first], pictures)
    clock = time.perf_counter()
    if marked is None:
        count, what = _ask(segmenter, str(prompt), every, drift, pictures, out)
    else:
        count, what = _follow(segmenter, *marked, memory, pictures, out)
    spent_s = time.perf_counter() - clock
    click.echo(
        f"\n{count} frames, {what}, {spent_s / count:.2f} s a frame: {out / 'overlays'}, {out / 'labels'}"
    )


def _follow(
    segmenter: Any,
    values: list[int],
    objects: list[NDArray[np.bool_]],
    memory: bool,
    pictures: Named,
    out: Path,
) -> tuple[int, str]:
    """Number of frames, and what was followed."""
    from pixelrt.queries import Regions

    named = []

    def remembered() -> Any:
        for name, picture in pictures:
            named.append((name, picture))
            yield picture

    count = 0
    for result in segmenter.track(remembered(), Regions(masks=objects), memory=memory):
        name, picture = named.pop()
        labels = np.array([0, *values], np.int32)[result.label_map]
        _write(out, name, picture, result.masks, labels, max(values))
        count += 1
        click.echo(name)
    return count, f"{len(values)} objects"


def _ask(
    segmenter: Segmenter, prompt: str, every: int, drift: float, pictures: Named, out: Path
) -> tuple[int, str]:
    """Number of frames, and how often it was asked."""
    from pixelrt.families.psalm_video import fused
    from pixelrt.tracking import Tracking

    tracking = Tracking(segmenter, prompt, every, drift)
    count = 0
    with (out / "answers.jsonl").open("w", encoding="utf-8") as answers:
        for name, picture in pictures:
            result = tracking.step(picture)
            masks = result.masks
            labels = fused(masks, picture.shape[:2])
            _write(out, name, picture, masks, labels, max(1, len(masks)))
            answer = {"frame": name, "asked": tracking.asked, **result.to_json()}
            answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
            count += 1
            click.echo(
                f"{name}  {'asked' if tracking.asked else '-----'}  {', '.join(m.label for m in masks)}"
            )
    return count, f"{tracking.questions} questions"


def _write(
    out: Path, name: str, picture: NDArray[np.uint8], masks: Any, labels: NDArray[np.int32], most: int
) -> None:
    from pixelrt.coco import indexed_png
    from pixelrt.overlay import draw

    draw(picture, masks).save(out / "overlays" / f"{name}.png", compress_level=3)
    (out / "labels" / f"{name}.png").write_bytes(indexed_png(labels, most))


def objects_of(path: Path) -> tuple[list[int], list[NDArray[np.bool_]]]:
    """Values of the objects in a label map and their masks; colours are numbered by the order of first pixels."""
    from pixelrt.image import open_image

    rgb = open_image(path)  # refuses what is no picture
    with Image.open(path) as picture:
        grey = picture.mode in ("P", "L", "1")
        labels = np.asarray(picture).astype(np.int32) if grey else None
    if labels is None:
        codes = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
        found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        rank = np.zeros(len(found), np.int32)
        order = [k for k in np.argsort(first) if found[k] != 0]
        rank[order] = np.arange(1, len(order) + 1)
        labels = rank[inverse].reshape(codes.shape)
    values = [int(value) for value in np.unique(labels) if value != 0]
    if not values:
        raise InputError(f"{path} marks no object: all of it is 0. Paint each object in a value of its own.")
    if max(values) > 255 or len(values) > 100:
        raise InputError(
            f"{path} has {len(values)} values. Give a label map with one an object, 100 at most."
        )
    return values, [labels == value for value in values]
