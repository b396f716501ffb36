"""The scenes of release 0.1: flat shapes, a quarter of the images not square. Goes when `looks.FLAT` does."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from pixelrt_export.tiny.backgrounds import background
from pixelrt_export.tiny.things import COLOURS, LONG_SIDE, SHAPES, TEXTURES, Scene, Thing


def flat_scene(seed: int, long_side: int, photographs: tuple[str, ...]) -> Scene:
    """2 to 5 objects on a background; a quarter of the images are not square. Same seed, same scene."""
    for attempt in range(100):
        drawn = _draw(np.random.default_rng([seed, attempt]), long_side, photographs)
        if len(drawn.things) >= 2:
            return drawn
    raise AssertionError(f"no scene for seed {seed}")


def _size(rng: np.random.Generator, long_side: int) -> tuple[int, int]:
    if rng.random() < 0.72:
        return long_side, long_side
    short = round(long_side * rng.uniform(0.6, 0.9))
    return (long_side, short) if rng.random() < 0.5 else (short, long_side)


def _place(rng: np.random.Generator, size: tuple[int, int], unit: float) -> list[Thing]:
    """Random objects; 30 % of the scenes allow overlap, a third of the objects resemble an earlier one."""
    height, width = size
    closeness = 0.75 if rng.random() < 0.3 else 1.12
    things: list[Thing] = []
    for _ in range(rng.integers(2, 6)):
        for _ in range(25):
            radius = rng.uniform(12, 25) * unit
            x, y = (rng.uniform(radius + 2 * unit, side - radius - 2 * unit) for side in (width, height))
            if all(
                math.hypot(x - t.x, y - t.y) > closeness * (radius + t.radius) and abs(x - t.x) > 6 * unit
                for t in things
            ):
                break
        else:
            continue
        shape, colour = SHAPES[rng.integers(5)], list(COLOURS)[rng.integers(6)]
        if things and rng.random() < 0.35:
            model = things[rng.integers(len(things))]
            shape = model.shape if rng.random() < 0.7 else shape
            colour = model.colour if rng.random() < 0.7 else colour
        texture = TEXTURES[rng.choice(3, p=[0.56, 0.22, 0.22])]
        things.append(Thing(shape, colour, texture, x, y, radius, rng.uniform(-0.35, 0.35)))
    return things


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """Polygon in units of the radius, before turning; the circle is drawn as an ellipse."""
    if thing.shape == "cross":
        a, b = 0.36, 1.1
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    corners, start, radii = {
        "square": (4, 0.25, (1.12,)),
        "triangle": (3, -0.5, (1.2,)),
        "star": (10, -0.5, (1.25, 0.55)),
    }[thing.shape]
    angles = [math.pi * (start + 2 * i / corners) for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _coverage(thing: Thing, box: tuple[int, int, int, int]) -> np.ndarray:
    """Antialiased coverage 0..1 inside box = (left, top, right, bottom), drawn at twice the size."""
    left, top, right, bottom = box
    canvas = Image.new("L", (2 * (right - left), 2 * (bottom - top)))
    draw = ImageDraw.Draw(canvas)
    x, y, r = 2 * (thing.x - left), 2 * (thing.y - top), 2 * thing.radius
    if thing.shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    else:
        cos, sin = r * math.cos(thing.turn), r * math.sin(thing.turn)
        draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in _outline(thing)], fill=255)
    return np.asarray(canvas.reduce(2), np.float32) / 255


def _shading(
    rng: np.random.Generator, thing: Thing, box: tuple[int, int, int, int], unit: float
) -> np.ndarray:
    """Brightness factor (h, w): a slight vertical ramp times the texture; period 8 units."""
    left, top, right, bottom = box
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    light = 1 + rng.uniform(-0.12, 0.12) * (y - thing.y) / thing.radius
    x, y = x / unit, y / unit
    if thing.texture == "striped":
        turn = rng.uniform(0, math.pi)
        light = light * np.where(
            np.sin((x * math.cos(turn) + y * math.sin(turn)) * math.pi / 4) > 0, 1.0, 0.42
        )
    elif thing.texture == "dotted":
        light = light * np.where((x % 8 - 4) ** 2 + (y % 8 - 4) ** 2 < 6.5, 0.32, 1.0)
    return light


def _draw(rng: np.random.Generator, long_side: int, photographs: tuple[str, ...]) -> Scene:
    size, unit = _size(rng, long_side), long_side / LONG_SIDE
    image, labels = background(rng, size, photographs), np.zeros(size, np.uint8)
    things, full = _place(rng, size, unit), []
    for label, thing in enumerate(things, start=1):
        reach = 1.35 * thing.radius + 2
        box = (
            max(0, int(thing.x - reach)),
            max(0, int(thing.y - reach)),
            min(size[1], int(thing.x + reach)),
            min(size[0], int(thing.y + reach)),
        )
        here = np.s_[box[1] : box[3], box[0] : box[2]]
        cover, colour = (
            _coverage(thing, box)[..., None],
            np.array(COLOURS[thing.colour]) + rng.uniform(-16, 16, 3),
        )
        image[here] += cover * (colour * _shading(rng, thing, box, unit)[..., None] - image[here])
        labels[here][cover[..., 0] >= 0.5] = label
        full.append(int((cover >= 0.5).sum()))
    image += rng.standard_normal((*size, 1), np.float32) * rng.uniform(0, 6)
    kept = []
    for label, (thing, area) in enumerate(zip(things, full, strict=True), start=1):
        rows, columns = np.nonzero(labels == label)
        if len(rows) > 0.35 * area:
            kept.append(
                Thing(
                    thing.shape,
                    thing.colour,
                    thing.texture,
                    columns.mean() + 0.5,
                    rows.mean() + 0.5,
                    thing.radius,
                    thing.turn,
                    label,
                )
            )
        else:
            labels[labels == label] = 0
    return Scene(image.clip(0, 255).astype(np.uint8), labels, tuple(sorted(kept, key=lambda t: t.x)))
