"""One object of a scene: where it stands, which pixels it covers, how its surface is painted.

Letters: h, w the pixels of the patch around an object; u, v its own coordinates (in radii, before it was turned).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

FINE = 3  # a pixel's side in cells of the drawing that its coverage is counted from
LOW_CONTRAST = 90.0  # between an object's colour and what lies behind it: below this it gets an outline


@dataclass(frozen=True)
class Pose:
    """x, y, radius in pixels: a circle of that radius has the object's area, but for the tilt.

    turn in radians; tilt: height after the plane leans back, of 1; keystone: how much larger its lower edge is;
    rounded: radius of its corners, in radii.
    """

    shape: str
    x: float
    y: float
    radius: float
    turn: float
    tilt: float = 1.0
    keystone: float = 0.0
    rounded: float = 0.0

    def enlarged(self, by: float) -> Pose:
        return replace(self, x=self.x * by, y=self.y * by, radius=self.radius * by)

    def outline(self) -> np.ndarray:
        """(points, 2) x, y in pixels"""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        u, v = self.radius * outline(self.shape).T
        x, y = u * cos - v * sin, (u * sin + v * cos) * self.tilt
        near = (
            1 - self.keystone * y / self.radius
        )  # a perspective view: a circle becomes an ellipse, not an egg
        return np.stack([self.x + x / near, self.y + y / near], axis=-1)


@dataclass(frozen=True)
class Cover:
    """The part of a patch that lies in the picture, and the coverage 0..1 of its pixels."""

    here: tuple[slice, slice]  # of the picture
    shown: np.ndarray  # (h, w) float32
    soft: np.ndarray  # (h, w) float32: the same, blurred by a fifth of the radius
    inner: np.ndarray  # (h, w) float32: without a thin rim
    area: int  # pixels covered, in the picture or beyond its frame


@dataclass(frozen=True)
class Finish:
    colour: tuple[float, float, float]
    texture: str
    pale: bool  # stripes and dots are lighter than the colour, not darker
    along: float  # direction of the stripes
    shade: float  # how much darker the side away from the light is
    relief: float  # how strongly the rim catches the light
    gloss: float
    shadow: float  # how dark it is; 0 for none
    reach: float  # of the shadow, in radii
    outlined: bool


@cache
def outline(shape: str) -> np.ndarray:
    """Polygon (points, 2) of area pi around its centre of mass."""
    if shape == "circle":
        angles = np.arange(48) * (2 * math.pi / 48)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    elif shape == "cross":
        a, b = 0.37, 1.1
        corner = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        points = np.array(corner + [(-x, -y) for x, y in corner])
    else:
        corners, start, radii = {
            "square": (4, 0.25, (1.0,)),
            "triangle": (3, -0.5, (1.0,)),
            "star": (10, -0.5, (1.0, 0.45)),
        }[shape]
        angles = math.pi * (start + 2 * np.arange(corners) / corners)
        points = np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    x, y = points.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return points * math.sqrt(math.pi / area)


def covered(pose: Pose, size: tuple[int, int]) -> Cover:
    """size: height, width of the picture. The patch reaches far enough for the object's shadow."""
    points, pad = pose.outline(), math.ceil(0.6 * pose.radius)
    blur = pose.rounded * pose.radius
    # Pillow blurs in three passes, each repeating the edge of the last: it must stay empty.
    left, top = (math.floor(v - 3 * blur) - 2 for v in points.min(0))
    right, bottom = (math.ceil(v + 3 * blur) + 2 for v in points.max(0))
    canvas = Image.new("L", (FINE * (right - left), FINE * (bottom - top)))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in FINE * (points - [left, top])], fill=255)
    if blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(FINE * blur)).point(_above(128))
    # One box is a third of the work of a Gaussian, and a rim needs no better.
    rim = canvas.filter(ImageFilter.BoxBlur(0.11 * FINE * pose.radius)).point(_above(230))
    shown, inner = (ImageOps.expand(part.reduce(FINE), pad) for part in (canvas, rim))
    soft = shown.filter(ImageFilter.GaussianBlur(0.2 * pose.radius))
    left, top, right, bottom = left - pad, top - pad, right + pad, bottom + pad
    inside = np.s_[max(0, -top) : max(0, size[0] - top), max(0, -left) : max(0, size[1] - left)]
    here = np.s_[max(0, top) : max(0, min(bottom, size[0])), max(0, left) : max(0, min(right, size[1]))]
    whole = [np.asarray(part, np.float32) / 255 for part in (shown, soft, inner)]
    return Cover(here, *(part[inside] for part in whole), area=int((whole[0] >= 0.5).sum()))


@cache
def _above(threshold: int) -> list[int]:
    return [255 if v >= threshold else 0 for v in range(256)]


def finish(rng: np.random.Generator, colour: tuple[int, int, int], texture: str, outlined: bool) -> Finish:
    """A random surface whose colour a person would still call by its name."""
    jitter = rng.uniform(-13, 13, 3) + rng.uniform(-12, 8)
    return Finish(
        colour=tuple(float(c) for c in np.clip(np.array(colour) + jitter, 0, 255)),
        texture=texture,
        pale=bool(rng.random() < 0.4) and colour[0] + colour[1] < 400,  # on yellow nobody would see it
        along=rng.uniform(0, math.pi),
        shade=rng.uniform(0.05, 0.2),
        relief=rng.uniform(0.0, 0.9) if rng.random() < 0.7 else 0.0,
        gloss=rng.uniform(0.1, 0.4) if rng.random() < 0.4 else 0.0,
        shadow=rng.uniform(0.2, 0.55) if rng.random() < 0.75 else 0.0,
        reach=rng.uniform(0.1, 0.32),
        outlined=outlined or bool(rng.random() < 0.2),
    )


def pattern(pose: Pose, surface: Finish, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """(h, w) 0..1: where stripes or dots are. x, y from the object's centre, in pixels."""
    cos, sin = math.cos(pose.turn), math.sin(pose.turn)
    u, v = x * cos + y / pose.tilt * sin, y / pose.tilt * cos - x * sin
    period = float(np.clip(0.5 * pose.radius, 6 * unit, 9.5 * unit))
    if surface.texture == "striped":
        wave = np.sin((u * math.cos(surface.along) + v * math.sin(surface.along)) * (2 * math.pi / period))
        return np.clip(wave * period / (2.5 * unit) * 0.5 + 0.5, 0, 1)
    to_dot = np.hypot((u + period / 2) % period - period / 2, (v + period / 2) % period - period / 2)
    return np.clip((0.31 * period - to_dot) / unit + 0.5, 0, 1)


def paint(image: np.ndarray, cover: Cover, pose: Pose, surface: Finish, light: float, unit: float) -> None:
    """Onto image (H, W, 3) float32. light: direction it comes from; unit: pixels that once were one."""
    here = image[cover.here]
    if min(here.shape[:2]) < 2:  # out of the picture: a patch's outermost pixels show nothing
        return
    shown = cover.shown
    to_light = math.cos(light), math.sin(light)
    if surface.shadow:
        far = tuple(-round(surface.reach * pose.radius * towards) for towards in to_light[::-1])
        here *= (1 - surface.shadow * _moved(cover.soft, far) * (1 - shown))[..., None]
    y, x = np.mgrid[cover.here].astype(np.float32)
    x, y = x + (0.5 - pose.x), y + (0.5 - pose.y)
    facing = (x * to_light[0] + y * to_light[1]) / pose.radius  # -1..1
    lit = 1 + surface.shade * np.clip(facing, -1.2, 1.2)
    if surface.relief:
        down, right = np.gradient(cover.soft)
        slope = -(right * to_light[0] + down * to_light[1]) * 0.5 * pose.radius
        lit = lit + 0.5 * surface.relief * np.clip(slope, -0.6, 0.6)
    colour = np.array(surface.colour, np.float32)
    behind = (here * shown[..., None]).sum((0, 1)) / max(float(shown.sum()), 1)
    plain = np.broadcast_to(colour, here.shape)
    if surface.texture != "plain":
        other = colour + 0.62 * (255 - colour) if surface.pale else 0.5 * colour
        plain = plain + pattern(pose, surface, x, y, unit)[..., None] * (other - colour)
    painted = plain * lit[..., None]
    if surface.gloss:
        spot = np.hypot(x - 0.4 * pose.radius * to_light[0], y - 0.4 * pose.radius * to_light[1])
        painted += surface.gloss * np.exp(-((spot / (0.3 * pose.radius)) ** 2))[..., None] * (255 - painted)
    if surface.outlined or float(np.abs(behind - colour).max()) < LOW_CONTRAST:
        painted *= 1 - 0.62 * (1 - cover.inner)[..., None]
    here += shown[..., None] * (painted - here)


def _moved(a: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    """a (h, w) shifted by rows and columns, zeros moving in."""
    out = np.zeros_like(a)
    (dy, dx), (h, w) = by, a.shape
    dy, dx = max(-h, min(h, dy)), max(-w, min(w, dx))  # further than that, nothing is left of it
    out[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)] = a[
        max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)
    ]
    return out
