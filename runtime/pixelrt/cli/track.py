"""`pixelrt track BUNDLE FRAMES --mask first.png`."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.cli import debug_option
from pixelrt.cli.progress import checking
from pixelrt.errors import InputError

OUT = "pixelrt-out"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("frames", type=click.Path(path_type=Path))
@click.option(
    "--mask",
    required=True,
    type=click.Path(path_type=Path),
    help="The objects in the first frame: a label map, one value or colour an object, 0 or black for none.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder for overlays/NAME.png and labels/NAME.png.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Look for objects as they were in the frame before, or always as in the first.",
)
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@debug_option
def track(bundle: Path, frames: Path, mask: Path, out: Path, memory: bool, backend: str) -> None:
    """Follow the objects marked in --mask through FRAMES, a folder of pictures in order or a video file.

    Writes for every frame an overlay and a label map with the values of --mask (or 1, 2, … for its colours).
    """  # fmt: skip
    import pixelrt
    from pixelrt.coco import indexed_png
    from pixelrt.frames import read_frames
    from pixelrt.overlay import draw
    from pixelrt.queries import Regions
    from pixelrt.segmenter import Tracker

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Give a folder.")
    pictures = read_frames(frames)
    values, objects = objects_of(mask)
    with checking(bundle) as progress:
        segmenter = pixelrt.load(bundle, backend=backend, progress=progress)
    if not isinstance(segmenter, Tracker):
        family = segmenter.bundle.manifest["family"]
        raise InputError(
            f"{bundle} is of family {family!r}, which does not follow objects. Use another bundle."
        )
    first = next(pictures, None)
    if first is None:
        raise InputError(f"{frames} holds no frame. Give another video or a folder of frames.")
    for folder in (out / "overlays", out / "labels"):
        folder.mkdir(parents=True, exist_ok=True)
    clock, named = time.perf_counter(), []

    def remembered() -> Any:
        for name, picture in chain([first], pictures):
            named.append((name, picture))
            yield picture

    count = 0
    for result in segmenter.track(remembered(), Regions(masks=objects), memory=memory):
        name, picture = named.pop()
        draw(picture, result.masks).save(out / "overlays" / f"{name}.png", compress_level=3)
        labels = np.array([0, *values], np.int32)[result.label_map]
        (out / "labels" / f"{name}.png").write_bytes(indexed_png(labels, max(values)))
        count += 1
        click.echo(f"{name}  {(time.perf_counter() - clock) / count:.2f} s a frame")
    click.echo(f"\n{count} frames, {len(values)} objects: {out / 'overlays'}, {out / 'labels'}")


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
