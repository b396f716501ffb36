"""Colours for masks, distinct to colour-blind readers too: the next one is the farthest from all before it.

distance(a, b) = min over normal, protanopic and deuteranopic sight of |Lab(a) - Lab(b)|

Sources: the first three are Okabe and Ito's (2008); sight matrices of Machado, Oliveira and Fernandes (2009),
for linear RGB at full severity; CIELAB with the D65 white point.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

_FIRST = ("56B4E9", "E69F00", "009E73")
_SIGHT = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(1)
_STEPS = 9  # levels of each channel among the candidates


def colours(count: int) -> list[Colour]:
    """The first `count` colours; a longer list begins with the shorter one."""
    table = _table(-(-count // 32) * 32)
    return [table[i % len(table)] for i in range(count)]


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on `colour`."""
    luminance = float(_linear(np.array(colour)) @ _XYZ[1])
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)


@cache
def _table(count: int) -> tuple[Colour, ...]:
    level = np.round(np.linspace(0, 255, _STEPS)).astype(int)
    candidates = np.stack(np.meshgrid(level, level, level, indexing="ij"), -1).reshape(-1, 3)
    lightness = _lab(candidates)[0, :, 0]
    candidates = candidates[(lightness > 36) & (lightness < 95)]  # dark and light outlines stay visible
    first = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _FIRST])
    places = _lab(candidates)
    nearest = _distance(places, _lab(first)).min(1)
    chosen = [tuple(map(int, row)) for row in first]
    for _ in range(min(count, len(candidates)) - len(first)):
        best = int(nearest.argmax())
        chosen.append(tuple(map(int, candidates[best])))
        nearest = np.minimum(nearest, _distance(places, places[:, best : best + 1])[:, 0])
    return tuple(chosen)  # type: ignore[arg-type]


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3 sights, n, 3) and (3, m, 3) Lab -> (n, m)."""
    return np.asarray(np.linalg.norm(a[:, :, None] - b[:, None], axis=-1).min(0))


def _linear(rgb: NDArray[np.int_]) -> NDArray[np.float64]:
    x = rgb / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _lab(rgb: NDArray[np.int_]) -> NDArray[np.float64]:
    """(n, 3) of 0..255 -> (3 sights, n, 3)."""
    seen = np.clip(np.einsum("sij,nj->sni", _SIGHT, _linear(rgb)), 0, 1)
    t = seen @ _XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
