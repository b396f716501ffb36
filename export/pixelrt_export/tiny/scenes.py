"""Deterministic scenes of coloured shapes with exact visible masks: `scene(seed) -> Scene`.

Nearest things come last. Every number of a scene is drawn before its size in pixels matters, so a larger picture of
the same seed shows the same scene.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from pixelrt_export.tiny.backgrounds import TRAINED, backdrop
from pixelrt_export.tiny.objects import Cover, Finish, Pose, covered, finish, paint
from pixelrt_export.tiny.things import COLOURS, LONG_SIDE, SHAPES, TEXTURES, Scene, Thing

SMALLEST = 9.0  # radius of a thing in a picture of LONG_SIDE
LEAST_VISIBLE = 0.65  # of a thing: less, and nobody could tell a square from a cross
LEAST_PIXELS = 120.0  # visible ones of a thing, in a picture of LONG_SIDE
LEAST_APART = 5.0  # columns between the centres of two things, in a picture of LONG_SIDE


def scene(seed: int, long_side: int = LONG_SIDE, photographs: tuple[str, ...] = TRAINED) -> Scene:
    """2 to 5 things on a background. Same arguments, same scene. photographs: of which one may be behind them.

    From 2 : 1 to 1 : 2, small things and large ones, some touching, hiding each other, or cut by the frame.
    """
    unit = long_side / LONG_SIDE
    for attempt in range(200):
        rng = np.random.default_rng([seed, attempt, 1])
        size = picture_size(rng)
        poses, things = arrangement(rng, size)
        covers = [covered(pose, size) for pose in poses]
        labels = label_map(covers, size)
        if _clear(covers, labels, _seen(things, covers, labels)):
            break
    else:
        raise AssertionError(f"no scene for seed {seed}")
    pixels = (round(size[0] * unit), round(size[1] * unit))
    if unit != 1:
        covers = [covered(pose.enlarged(unit), pixels) for pose in poses]
        labels = label_map(covers, pixels)
    image = backdrop(rng, pixels, photographs)
    light, balance = lighting(rng)
    for k, cover in enumerate(covers):
        paint(image, cover, poses[k].enlarged(unit), finish_of(rng, things, poses, k), light, unit)
    return Scene(exposed(rng, image * balance), labels, _seen(things, covers, labels))


def finish_of(rng: np.random.Generator, things: list[Thing], poses: list[Pose], k: int) -> Finish:
    """An outline where a thing meets an earlier one of its colour, or is so small that its texture frays it."""
    frayed = things[k].texture != "plain" and poses[k].radius < 13
    meets = any(
        things[j].colour == things[k].colour
        and math.hypot(poses[j].x - poses[k].x, poses[j].y - poses[k].y)
        < 1.5 * (poses[j].radius + poses[k].radius)
        for j in range(k)
    )
    return finish(rng, COLOURS[things[k].colour], things[k].texture, outlined=meets or frayed)


def picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height, width of a picture of LONG_SIDE; half of them square."""
    if rng.random() < 0.5:
        return LONG_SIDE, LONG_SIDE
    short = round(LONG_SIDE * rng.uniform(0.5, 0.95))
    return (LONG_SIDE, short) if rng.random() < 0.4 else (short, LONG_SIDE)


def arrangement(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[Pose], list[Thing]]:
    """Random things; over a third of them resemble an earlier one. Half of the later ones are put next to one."""
    height, width = size
    largest = min(30.0, 0.3 * min(size))
    inset = 0.55 if rng.random() < 0.15 else 1.15  # radii between a centre and the frame
    poses: list[Pose] = []
    things: list[Thing] = []
    for _ in range(int(rng.choice([2, 3, 4, 5], p=[0.16, 0.26, 0.29, 0.29]))):
        near = bool(poses) and rng.random() < 0.45
        closeness = rng.uniform(0.66, 0.95) if rng.random() < 0.5 else rng.uniform(1.0, 1.15)
        for _ in range(25):
            radius = SMALLEST * (largest / SMALLEST) ** rng.random() ** 0.8
            edge = inset * radius + 1
            if near:
                other, turn = poses[rng.integers(len(poses))], rng.uniform(0, 2 * math.pi)
                reach = closeness * (radius + other.radius)
                x, y = other.x + reach * math.cos(turn), other.y + reach * math.sin(turn)
            else:
                x, y = (rng.uniform(edge, side - edge) for side in (width, height))
            least = 0.99 * closeness if near else 1.25
            if not (edge <= x <= width - edge and edge <= y <= height - edge):
                continue
            if all(
                math.hypot(x - p.x, y - p.y) >= least * (radius + p.radius) and abs(x - p.x) > LEAST_APART
                for p in poses
            ):
                break
        else:
            continue
        thing = _thing(rng, things, x, y, radius)
        poses.append(_pose(rng, thing))
        things.append(thing)
    return poses, things


def _thing(rng: np.random.Generator, earlier: list[Thing], x: float, y: float, radius: float) -> Thing:
    shape, colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
    if earlier and rng.random() < 0.4:
        model = earlier[rng.integers(len(earlier))]
        shape = model.shape if rng.random() < 0.7 else shape
        colour = model.colour if rng.random() < 0.7 else colour
    texture = TEXTURES[rng.choice(3, p=[0.56, 0.22, 0.22])]
    turn = rng.uniform(-0.35, 0.35)  # a square on its tip is a diamond
    return Thing(shape, colour, texture, x, y, radius, turn)


def _pose(rng: np.random.Generator, thing: Thing) -> Pose:
    lean = 0.55 if thing.shape == "square" else 1.0  # a turned square would come out a rhombus
    return Pose(
        thing.shape,
        thing.x,
        thing.y,
        thing.radius,
        thing.turn,
        tilt=1 - 0.16 * lean * rng.random(),
        keystone=0.12 * lean * rng.uniform(-1, 1),
        rounded=0.0 if thing.shape == "circle" or rng.random() < 0.4 else rng.uniform(0.04, 0.13),
    )


def label_map(covers: list[Cover], size: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(size, np.uint8)
    for label, cover in enumerate(covers, start=1):
        labels[cover.here][cover.shown >= 0.5] = label
    return labels


def _seen(things: list[Thing], covers: list[Cover], labels: np.ndarray) -> tuple[Thing, ...]:
    """The things as they are seen, left to right."""
    seen = []
    for label, (thing, cover) in enumerate(zip(things, covers, strict=True), start=1):
        rows, columns = np.nonzero(labels == label)
        if len(rows):
            x, y = columns.mean() + 0.5, rows.mean() + 0.5
            seen.append(replace(thing, x=x, y=y, radius=math.sqrt(cover.area / math.pi), label=label))
    return tuple(sorted(seen, key=lambda t: t.x))


def _clear(covers: list[Cover], labels: np.ndarray, seen: tuple[Thing, ...]) -> bool:
    """Of a picture of LONG_SIDE: nothing is too much hidden, no two things stand in one column."""
    shown = np.bincount(labels.ravel(), minlength=len(covers) + 1)[1:]
    least = [max(LEAST_VISIBLE * cover.area, LEAST_PIXELS) for cover in covers]
    apart = [b.x - a.x >= LEAST_APART for a, b in pairwise(seen)]
    return len(seen) > 1 and bool((shown >= least).all()) and all(apart)


def lighting(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Direction it comes from, above; and brightness with a white balance a little off, (3,) float32."""
    tint = 1 + rng.uniform(-0.04, 0.04) * np.array([1, 0, -1])
    return rng.uniform(-0.85 * math.pi, -0.15 * math.pi), (rng.uniform(0.93, 1.07) * tint).astype(np.float32)


def exposed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Sensor noise; then 8 bit."""
    noise = np.float32(rng.uniform(0, 5)) * rng.standard_normal((*image.shape[:2], 1), np.float32)
    return (image + noise).clip(0, 255).astype(np.uint8)
