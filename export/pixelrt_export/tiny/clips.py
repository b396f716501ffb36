"""Short videos of moving things with exact masks: `clip(seed) -> Clip`. Things hide each other, come and go."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pixelrt_export.tiny.backgrounds import TRAINED, backdrop
from pixelrt_export.tiny.objects import Pose, covered, paint
from pixelrt_export.tiny.scenes import (
    LEAST_PIXELS,
    LEAST_VISIBLE,
    arrangement,
    exposed,
    finish_of,
    label_map,
    lighting,
    picture_size,
)
from pixelrt_export.tiny.things import LONG_SIDE, Scene, Thing

FRAMES = 8
PAN = 2.5  # pixels a frame, at most, that the background moves in a picture of LONG_SIDE


@dataclass(frozen=True)
class Clip:
    """frames: a thing has the same label in all of them, and is among a frame's things where it has a pixel."""

    frames: tuple[Scene, ...]

    def tracked(self) -> tuple[Thing, ...]:
        """The things of the first frame, left to right."""
        return self.frames[0].things

    def later(self, seed: int) -> Scene:
        """One of the frames after the first that shows at least two things, none of them as a sliver; or the first."""
        height, width = self.frames[0].labels.shape
        least = LEAST_PIXELS * (max(height, width) / LONG_SIDE) ** 2
        fit = [
            frame
            for frame in self.frames[1:]
            if len(frame.things) > 1 and min(frame.mask(t).sum() for t in frame.things) >= least
        ]
        return fit[np.random.default_rng(seed).integers(len(fit))] if fit else self.frames[0]


@dataclass(frozen=True)
class Motion:
    """Of one thing, a frame: x, y in pixels of LONG_SIDE, turn in radians, growth of the radius."""

    x: float
    y: float
    turn: float
    growth: float

    def after(self, pose: Pose, frames: float) -> Pose:
        return replace(
            pose,
            x=pose.x + frames * self.x,
            y=pose.y + frames * self.y,
            turn=pose.turn + frames * self.turn,
            radius=pose.radius * (1 + self.growth) ** frames,
        )


def clip(
    seed: int,
    long_side: int = LONG_SIDE,
    photographs: tuple[str, ...] = TRAINED,
    frames: int = FRAMES,
    pace: float = 1.0,
) -> Clip:
    """2 to 5 things; all but at most one are whole and in sight in the first frame.

    pace: of all motion. Things go their way in FRAMES / pace frames.
    """
    unit = long_side / LONG_SIDE
    for attempt in range(200):
        rng = np.random.default_rng([seed, attempt, 2])
        size = picture_size(rng)
        poses, things = arrangement(rng, size)
        if len(poses) < 2:
            continue
        poses, motions = _motions(rng, poses, size)
        pixels = (round(size[0] * unit), round(size[1] * unit))
        moved = [
            [m.after(p, t * pace).enlarged(unit) for p, m in zip(poses, motions, strict=True)]
            for t in range(frames)
        ]
        covers = [[covered(pose, pixels) for pose in frame] for frame in moved]
        labels = [label_map(frame, pixels) for frame in covers]
        first = [
            (labels[0] == k).sum() >= LEAST_VISIBLE * cover.area for k, cover in enumerate(covers[0], start=1)
        ]
        in_sight = sum((x == k).any() for k in range(1, len(things) + 1) for x in labels) / frames
        if sum(first) >= max(2, len(first) - 1) and in_sight > 0.7 * len(things):
            break
    else:
        raise AssertionError(f"no clip for seed {seed}")
    marked = [k + 1 for k, whole in enumerate(first) if whole]
    labels[0] *= np.isin(labels[0], marked)  # a thing that just shows an edge is nothing to mark
    # Outlined in any case: what is needed against one part of the background must not come and go.
    surfaces = [replace(finish_of(rng, things, poses, k), outlined=True) for k in range(len(things))]
    light, balance = lighting(rng)
    wide, pan = _panorama(rng, pixels, photographs, frames, unit * pace)
    scenes = []
    for t in range(frames):
        image = wide[pan[t][1] : pan[t][1] + pixels[0], pan[t][0] : pan[t][0] + pixels[1]].copy()
        for cover, pose, surface in zip(covers[t], moved[t], surfaces, strict=True):
            paint(image, cover, pose, surface, light, unit)
        seen = _seen(things, moved[t], labels[t])
        scenes.append(Scene(exposed(rng, image * balance), labels[t], seen))
    return Clip(tuple(scenes))


def _motions(
    rng: np.random.Generator, poses: list[Pose], size: tuple[int, int]
) -> tuple[list[Pose], list[Motion]]:
    """Where each begins and how it moves: most drift, a third head for another thing, some come in, some leave."""
    out, motions = [], []
    for k, pose in enumerate(poses):
        turn, speed = rng.uniform(0, 2 * math.pi), rng.uniform(1.5, 7.0)
        x, y = speed * math.cos(turn), speed * math.sin(turn)
        other = poses[rng.integers(len(poses))]
        if other is not pose and rng.random() < 0.35:
            x, y = (other.x - pose.x) / 6, (other.y - pose.y) / 6
        outside = -1.3 * pose.radius if rng.random() < 0.5 else size[1] + 1.3 * pose.radius
        if k == 0 and len(poses) > 2 and rng.random() < 0.4:
            x = (pose.x - outside) / FRAMES * 1.3
            pose = replace(pose, x=outside)
        elif k == 1 and rng.random() < 0.3:
            x, y = (outside - pose.x) / FRAMES * 1.4, y / 3
        out.append(pose)
        motions.append(Motion(x, y, rng.uniform(-0.08, 0.08), rng.uniform(-0.02, 0.02)))
    return out, motions


def _panorama(
    rng: np.random.Generator, pixels: tuple[int, int], names: tuple[str, ...], frames: int, unit: float
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A background larger than the picture, and x, y of the picture in it, frame by frame; PAN is times `unit`."""
    room = math.ceil(PAN * frames * unit)
    wide = backdrop(rng, (pixels[0] + room, pixels[1] + room), names)
    speed = rng.uniform(-PAN, PAN, 2) * unit
    starts = [0 if v >= 0 else room for v in speed]
    return wide, [
        tuple(int(np.clip(round(s + t * v), 0, room)) for s, v in zip(starts, speed, strict=True))
        for t in range(frames)
    ]


def _seen(things: list[Thing], poses: list[Pose], labels: np.ndarray) -> tuple[Thing, ...]:
    seen = []
    for label, (thing, pose) in enumerate(zip(things, poses, strict=True), start=1):
        rows, columns = np.nonzero(labels == label)
        if len(rows):
            at = {"x": columns.mean() + 0.5, "y": rows.mean() + 0.5}
            seen.append(replace(thing, **at, radius=pose.radius, turn=pose.turn, label=label))
    return tuple(sorted(seen, key=lambda t: t.x))
