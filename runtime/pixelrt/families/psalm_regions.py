"""Regions a user marks -> what PSALM's prompt takes for them.

vector[r] = mean over the pixels (y, x) of region r of tokens at (y, x) / S * (t - 1), read bilinearly

S: side of the network's input; t x t image tokens. The mean is linear in the tokens, so it is one row of weights
a region. The original averages 256 pixels drawn at random: this is what that is on average.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.engine import Array
from pixelrt.errors import InputError
from pixelrt.queries import Bits, Place, Regions

RADIUS_PX = {"points": 10, "scribbles": 5}  # of the disc around each pixel touched, in the original picture
FAR = 1 << 40  # pixels from the corner, beyond which a place is moved in: floats are exact below
CHUNK = 4096  # touched pixels whose discs are painted at once


def region_masks(regions: Regions, size: tuple[int, int]) -> list[Bits]:
    """One mask (H, W) a region, at the picture's own size, in the order of the answers."""
    return [
        rasterised(kind, item, size, f"region {i}") for i, (kind, item) in enumerate(regions.each(), start=1)
    ]


def rasterised(kind: str, item: Any, size: tuple[int, int], name: str) -> Bits:
    """One region of a query as a mask (H, W). Raises InputError where it does not lie in the picture."""
    height, width = size
    if isinstance(item, np.ndarray) and item.shape != size:
        raise InputError(
            f"{name} is a mask of {item.shape[1]} x {item.shape[0]} pixels; the picture has {width} x {height}. "
            "Give a mask of the picture's size."
        )
    if kind == "boxes":
        x0, y0, x1, y1 = item
        mask = np.zeros(size, np.bool_)
        mask[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    elif kind == "masks":
        mask = item
    else:
        if not isinstance(item, np.ndarray):
            item = (_joined if kind == "scribbles" else _pixels)(item, size)
        mask = discs(item, RADIUS_PX[kind])
    if not mask.any():
        raise InputError(f"{name} lies outside the picture of {width} x {height} pixels. Mark a place in it.")
    return mask


def discs(touched: Bits, radius: int) -> Bits:
    """(H, W): every pixel at most `radius` from a touched one."""
    reach = np.arange(-radius, radius + 1)
    down, right = np.nonzero(reach[:, None] ** 2 + reach**2 <= radius**2)
    # A frame of `radius` pixels around the picture takes what falls outside it.
    out = np.zeros((touched.shape[0] + 2 * radius, touched.shape[1] + 2 * radius), np.bool_)
    ys, xs = np.nonzero(touched)
    for start in range(0, len(ys), CHUNK):
        part = slice(start, start + CHUNK)
        out[ys[part, None] + down, xs[part, None] + right] = True
    return out[radius:-radius, radius:-radius] if radius else out


def network_mask(mask: Bits, content: tuple[int, int], name: str) -> Bits:
    """The mask (h', w') where the network sees the picture: the nearest pixel, as the original resizes masks."""
    picture = Image.fromarray(mask.astype(np.uint8))
    small = np.asarray(picture.resize((content[1], content[0]), Image.Resampling.NEAREST)) > 0
    if not small.any():
        raise InputError(
            f"{name} has nothing left when the picture is resized to {content[1]} x {content[0]} pixels. "
            "Mark a larger part of the object."
        )
    return small


def pooling_weights(pixels: NDArray[Any], square: int, tokens: int) -> NDArray[np.float32]:
    """(tokens,) weights of the image tokens in a region's vector.

    pixels (h', w') from the top-left corner of the S x S input: the region, or how often each pixel counts.
    """
    side = round(tokens**0.5)
    rows, columns = (_interpolation(length, square, side) for length in pixels.shape)
    counts = np.asarray(pixels, np.float64)
    weights = rows.T @ counts @ columns / counts.sum()
    return np.asarray(weights.ravel(), np.float32)


def region_vectors(masks: list[Bits], tokens: Array, content: tuple[int, int], square: int) -> Array:
    """(R, H) vectors of masks (H, W) of one picture, whose image tokens (T, H) are given."""
    small = [network_mask(mask, content, f"region {i}") for i, mask in enumerate(masks, start=1)]
    weights = np.stack([pooling_weights(mask, square, len(tokens)) for mask in small])
    return weights @ tokens.astype(np.float32)


def _interpolation(length: int, square: int, side: int) -> NDArray[np.float64]:
    """(length, side): row i reads position i / square * (side - 1) of a line of `side` tokens."""
    position = np.arange(length) / square * (side - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(side))), np.float64)


def _pixels(places: tuple[Place, ...], size: tuple[int, int]) -> Bits:
    touched = np.zeros(size, np.bool_)
    for x, y in places:
        if 0 <= x < size[1] and 0 <= y < size[0]:
            touched[y, x] = True
    return touched


def _joined(places: tuple[Place, ...], size: tuple[int, int]) -> Bits:
    """The places of a scribble with straight lines of pixels between them, where they lie in the picture."""
    touched = _pixels(places, size)
    height, width = size
    near = [tuple(min(max(edge, -FAR), FAR) for edge in place) for place in places]
    for (x0, y0), (x1, y1) in pairwise(near):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        # Only the steps about the picture are walked: a place may lie any number of pixels away.
        first, last = 0, steps
        for start, end, length in ((x0, x1, width), (y0, y1, height)):
            if start != end:
                about = sorted((edge - start) * steps // (end - start) for edge in (-1, length))
                first, last = max(first, about[0]), min(last, about[1] + 1)
        step = np.arange(first, last + 1, dtype=np.float64)
        x, y = (np.rint(start + (end - start) * step / steps) for start, end in ((x0, x1), (y0, y1)))
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        touched[y[inside].astype(np.int64), x[inside].astype(np.int64)] = True
    return touched
