"""Scene backgrounds: crops of photographs (see photographs/README.md), gradients and noise."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pixelrt.errors import InputError

PHOTOGRAPHS = Path(__file__).with_name("photographs")
TRAINED = (
    "acanthus.jpg",
    "aeroplane.jpg",
    "alps.jpg",
    "astronaut.jpg",
    "autumn_meadow.jpg",
    "black_canyon.jpg",
    "brick.jpg",
    "car_park.jpg",
    "cat.jpg",
    "cellar.jpg",
    "cork.jpg",
    "courtyard.jpg",
    "dandelions.jpg",
    "dogs.jpg",
    "field.jpg",
    "forest.jpg",
    "galaxies.jpg",
    "gravel.jpg",
    "hall.jpg",
    "harbour.jpg",
    "hilltop.jpg",
    "laboratory.jpg",
    "lobby.jpg",
    "pagoda.jpg",
    "pastel_paper.jpg",
    "photographer.jpg",
    "square.jpg",
    "stream.jpg",
    "walking_cat.jpg",
)
HELD_OUT = (
    "bedroom.jpg",
    "dahlia.jpg",
    "farmhouse.jpg",
    "grass.jpg",
    "mountain_path.jpg",
    "quay.jpg",
    "raccoon.jpg",
    "sheep.jpg",
    "veined_paper.jpg",
    "workshop.jpg",
)
# Of an evaluation: name -> photographs.
GROUPS = {"held-out seeds": TRAINED, "held-out backgrounds": HELD_OUT}


@cache
def photograph(name: str) -> Image.Image:
    file = PHOTOGRAPHS / name
    if not file.exists():
        raise InputError(
            f"{name} is not in {PHOTOGRAPHS}: photographs are not installed with the package. "
            "Run this from a source checkout."
        )
    image = Image.open(file).convert("RGB")
    image.thumbnail((360, 360))
    return image


def gradient(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A linear ramp between two muted colours."""
    y, x = np.mgrid[-0.5 : 0.5 : size[0] * 1j, -0.5 : 0.5 : size[1] * 1j]
    turn = rng.uniform(0, 2 * math.pi)
    ramp = (x * math.cos(turn) + y * math.sin(turn) + 0.5)[..., None]
    start, end = rng.uniform(30, 225, 3), rng.uniform(30, 225, 3)
    image = start + (end - start) * ramp
    grey = image.mean(-1, keepdims=True)
    return (grey + 0.4 * (image - grey)).astype(np.float32)


def noise(rng: np.random.Generator, size: tuple[int, int], sharpest: int = 70) -> np.ndarray:
    """Smooth or fine random patches, nearly grey."""
    cells = min(sharpest, int(rng.choice([5, 14, 70])))
    grid = rng.uniform(40, 210, (cells, cells, 1)) + rng.uniform(-25, 25, (cells, cells, 3))
    image = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR), np.float32)


def backdrop(rng: np.random.Generator, size: tuple[int, int], names: tuple[str, ...]) -> np.ndarray:
    """float32 (H, W, 3) on 0..255: 80 % photographs, 20 % made up."""
    kind = rng.random()
    if kind > 0.8:
        return gradient(rng, size) if kind < 0.93 else noise(rng, size, sharpest=14)
    height, width = size
    photo = photograph(names[rng.integers(len(names))])
    w = rng.uniform(0.4, 1) * min(photo.width, photo.height * width / height)
    h = w * height / width
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    crop = np.array(
        photo.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h)), np.float32
    )
    keep = rng.uniform(0.6, 1)
    crop = crop * keep + (1 - keep) * rng.uniform(60, 200)
    return crop[:, ::-1] if rng.random() < 0.5 else crop
