"""The vocabulary of the scenes, what is in one, and its exact visible masks.

Coordinates are pixels of the image; the mask of a thing is what later things leave visible of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LONG_SIDE = 140
COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 165, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 205, 45),
    "purple": (145, 55, 175),
    "cyan": (50, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "striped", "dotted")
# What no scene shows, neither drawn nor in a photograph: for questions that must be refused.
STRANGERS = (
    "heart",
    "arrow",
    "hexagon",
    "ring",
    "elephant",
    "banana",
    "guitar",
    "umbrella",
    "bicycle",
    "spoon",
)
STRANGE_COLOURS = ("pink", "silver")
NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Thing:
    """One object. x, y: centre of its visible pixels once drawn; label: its value in `Scene.labels`."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float
    label: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8: 0 background, otherwise Thing.label
    things: tuple[Thing, ...]  # left to right

    def mask(self, thing: Thing) -> np.ndarray:
        return self.labels == thing.label


def plural_of(call: str) -> str:
    """'red cross' -> 'red crosses'"""
    return call + ("es" if call.endswith("s") else "s")
