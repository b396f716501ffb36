"""Scenes and pairs of video frames drawn once into memory-mapped arrays, and batches of them as network input."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixelrt_export.reference.preprocess import MEAN, STD
from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import COLOURS, LONG_SIDE, SHAPES, TEXTURES, Scene, Thing

MOST = 5  # objects in a scene
FIELDS = 7  # shape, colour, texture (from 1; 0 absent), x, y, radius, turn


@dataclass
class Batch:
    pixels: Tensor  # (B, 3, S, S) normalised, padded
    fitted: list[tuple[int, int]]  # (h', w') of each
    labels: Tensor  # (B, S, S) int64: 0 background, k the thing with label k
    tables: Tensor  # (B, MOST, FIELDS), row k - 1 for label k
    things: list[list[Thing]]  # left to right
    before: list[int | None]  # an earlier frame of the same clip among the images, where there is one

    def joined(self, other: Batch) -> Batch:
        """Both one after the other; the same size."""
        count = len(self.things)
        return Batch(
            torch.cat([self.pixels, other.pixels]),
            self.fitted + other.fitted,
            torch.cat([self.labels, other.labels]),
            torch.cat([self.tables, other.tables]),
            self.things + other.things,
            self.before + [None if k is None else count + k for k in other.before],
        )


def _row(thing: Thing) -> tuple[float, ...]:
    return (
        SHAPES.index(thing.shape) + 1,
        list(COLOURS).index(thing.colour) + 1,
        TEXTURES.index(thing.texture) + 1,
        thing.x,
        thing.y,
        thing.radius,
        thing.turn,
    )


def _thing(row: np.ndarray, label: int) -> Thing:
    shape, colour, texture = (int(v) - 1 for v in row[:3])
    return Thing(SHAPES[shape], list(COLOURS)[colour], TEXTURES[texture], *map(float, row[3:]), label=label)


def _arrays(folder: Path, key: str, count: int, side: int, mode: str) -> dict[str, np.memmap]:
    kinds = {
        "images": (np.uint8, (side, side, 3)),
        "labels": (np.uint8, (side, side)),
        "sizes": (np.int16, (2,)),
        "tables": (np.float32, (MOST, FIELDS)),
    }
    return {
        name: np.memmap(folder / f"{name}_{key}.bin", dtype, mode, shape=(count, *shape))
        for name, (dtype, shape) in kinds.items()
    }


def _key(count: int, side: int, films: bool) -> str:
    parts = {"": True, f"_{side}": side != LONG_SIDE, "_films": films}
    return str(count) + "".join(part for part, told in parts.items() if told)


def _frame(seed: int, side: int) -> Scene:
    """Even seeds: the first frame of a clip. Odd ones: a later frame of the same."""
    film = clip(seed // 2, side)
    return film.later(seed) if seed % 2 else film.frames[0]


def _draw_share(folder: Path, count: int, side: int, films: bool, share: range) -> None:
    arrays = _arrays(folder, _key(count, side, films), count, side, "r+")
    for seed in share:
        drawn = _frame(seed, side) if films else scene(seed, side)
        height, width = drawn.labels.shape
        arrays["images"][seed, :height, :width] = drawn.image
        arrays["labels"][seed, :height, :width] = drawn.labels
        arrays["sizes"][seed] = height, width
        for thing in drawn.things:
            arrays["tables"][seed, thing.label - 1] = _row(thing)


def _draw_all(folder: Path, count: int, side: int, films: bool, processes: int) -> None:
    if processes == 1:
        return _draw_share(folder, count, side, films, range(count))
    workers = [
        multiprocessing.get_context("spawn").Process(
            target=_draw_share, args=(folder, count, side, films, range(i, count, processes))
        )
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"drawing scenes into {folder} failed with exit code {worker.exitcode}")


def drawn_scenes(
    folder: Path,
    count: int,
    processes: int = 2,
    side: int = LONG_SIDE,
    films: bool = False,
) -> dict[str, np.memmap]:
    """Scenes of the seeds 0..count-1, drawn on the first call (about 4 ms each) and mapped on later ones.

    side: the longer one of each, in pixels. films: two frames each of count / 2 clips (25 ms a frame) instead.
    """
    key = _key(count, side, films)
    done = folder / f"done_{key}"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _arrays(folder, key, count, side, "w+")
        _draw_all(folder, count, side, films, processes if count > 256 else 1)
        done.touch()
    return _arrays(folder, key, count, side, "r")


def _mirrored(image: np.ndarray, labels: np.ndarray, table: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    image, labels, table = image.copy(), labels.copy(), table.copy()
    image[:, :width], labels[:, :width] = image[:, :width][:, ::-1].copy(), labels[:, :width][:, ::-1].copy()
    table[:, 3] = np.where(table[:, 0] > 0, width - table[:, 3], 0)
    table[:, 6] *= -1
    return image, labels, table


def draw_batch(
    arrays: dict[str, np.memmap],
    count: int,
    rng: np.random.Generator,
    fill: np.ndarray | float = 0.0,
    films: bool = False,
) -> Batch:
    """`count` random scenes, each mirrored half of the time. fill: of the padding, after normalisation.

    films: of count / 2 clips two frames each, one after the other, mirrored alike.
    """
    images, labels, tables, fitted, things = [], [], [], [], []
    chosen = rng.integers(len(arrays["images"]) // (1 + films), size=count // (1 + films))
    if films:
        chosen = np.stack([2 * chosen, 2 * chosen + 1], axis=-1).ravel()
    mirrored = False
    for k, index in enumerate(chosen):
        image, label, table = (np.asarray(arrays[name][index]) for name in ("images", "labels", "tables"))
        height, width = map(int, arrays["sizes"][index])
        mirrored = mirrored if films and k % 2 else rng.random() < 0.5
        if mirrored:
            image, label, table = _mirrored(image, label, table, width)
        pixels = (image.astype(np.float32) - MEAN) / STD
        pixels[height:], pixels[:, width:] = fill, fill
        images.append(pixels)
        labels.append(label)
        tables.append(table)
        fitted.append((height, width))
        things.append(
            sorted((_thing(row, k + 1) for k, row in enumerate(table) if row[0]), key=lambda t: t.x)
        )
    pixels, label_maps, rows = (torch.tensor(np.stack(arrays)) for arrays in (images, labels, tables))
    before = [k - 1 if films and k % 2 else None for k in range(len(chosen))]
    return Batch(pixels.permute(0, 3, 1, 2).contiguous(), fitted, label_maps.long(), rows, things, before)
