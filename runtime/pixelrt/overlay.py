"""One picture that shows an answer: masks over the image; question, answer and legend in a panel beside it.

Fill in the mask's colour at ALPHA; at the edge, from inside out, a line of that colour, a light, a dark one.
Whatever the picture is like, one of the three stands out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pixelrt.legend import chip, chip_size, panel
from pixelrt.masks import Mask
from pixelrt.palette import Colour, colours

LONG_SIDE_MIN = 960  # smaller pictures are enlarged by a whole factor
LONG_SIDE_MAX = 2560  # larger ones are reduced: this picture is for looking at, the masks keep the full size
ALPHA = 0.3
LIGHT, DARK = (255, 255, 255), (16, 16, 16)
PAPER = (255, 255, 255)

Bits = NDArray[np.bool_]
Box = tuple[float, float, float, float]


def draw(
    image: NDArray[np.uint8], masks: Sequence[Mask], question: str | None = None, text: str | None = None
) -> Image.Image:
    """RGB picture of `image` (H, W, 3) with `masks` on it, and beside a tall or below a wide one the panel.

    `text` is the answer; where a mask's span points into it, the mask's number stands in place of the marker.
    """
    palette = colours(len(masks))
    picture = _fitted(image)
    canvas = np.array(picture)
    line_px = max(2, round(max(picture.size) / 430))
    shapes = [_resized(mask.mask, picture.size) for mask in masks]
    # Small ones last, so that what lies on something large stays visible.
    for index in sorted(range(len(masks)), key=lambda i: -int(shapes[i].sum())):
        _paint(canvas, shapes[index], palette[index], line_px)
    picture = Image.fromarray(canvas)
    width, height = picture.size
    beside = height > 1.25 * width
    font_px = max(18, round((height if beside else width) / 44))
    _number(picture, shapes, palette, font_px)
    room = 26 * font_px if beside else max(width, 26 * font_px)
    side = panel(room, font_px, masks, palette, question, text)
    return _joined(picture, side, beside)


def painted(image: NDArray[np.uint8], masks: Sequence[Mask]) -> NDArray[np.uint8]:
    """`image` (H, W, 3) at its own size with `masks` on it, without numbers and words."""
    canvas: NDArray[np.uint8] = image.copy()
    palette = colours(len(masks))
    line_px = max(1, round(max(image.shape[:2]) / 430))
    shapes = [mask.mask for mask in masks]
    for index in sorted(range(len(masks)), key=lambda i: -int(shapes[i].sum())):
        _paint(canvas, shapes[index], palette[index], line_px)
    return canvas


def _fitted(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    long_side = max(picture.size)
    if long_side > LONG_SIDE_MAX:
        scale, how = LONG_SIDE_MAX / long_side, Image.Resampling.BOX
    else:
        scale, how = float(math.ceil(LONG_SIDE_MIN / long_side)), Image.Resampling.BILINEAR
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if scale == 1 else picture.resize(size, how)


def _resized(mask: Bits, size: tuple[int, int]) -> Bits:
    """The mask at `size` (width, height). Enlarged, its stairs are rounded by less than half its pixel."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    if size[0] < mask.shape[1]:
        return np.asarray(grey.resize(size, Image.Resampling.BOX)) > 96  # below half, for thin things
    blur_px = 0.45 * size[0] / mask.shape[1]  # a single pixel survives up to 0.47
    grey = grey.resize(size, Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(blur_px))
    return np.asarray(grey) > 127


def _paint(canvas: NDArray[np.uint8], shape: Bits, colour: Colour, line_px: int) -> None:
    """Fill and outline one mask in place; only its box and the room for the lines are touched."""
    ys, xs = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    if not len(ys):
        return
    room = 3 * line_px
    window = (
        slice(max(0, ys[0] - room), ys[-1] + 1 + room),
        slice(max(0, xs[0] - room), xs[-1] + 1 + room),
    )
    inside, pixels = shape[window], canvas[window]
    light = grown(inside, line_px)
    dark = grown(light, line_px)
    edge = inside & grown(~inside, 2 * line_px)
    mixed = pixels[inside] * (1 - ALPHA) + np.array(colour) * ALPHA
    pixels[inside] = (mixed + 0.5).astype(np.uint8)
    pixels[edge] = colour
    pixels[light & ~inside] = LIGHT
    pixels[dark & ~light] = DARK


def grown(shape: Bits, radius: int) -> Bits:
    """`shape` with every pixel within about `radius` of it (an octagon: crosses and squares in turn)."""
    for step in range(radius):
        padded = np.pad(shape, 1)
        wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
        if step % 2:
            shape = wide[:-2] | wide[1:-1] | wide[2:]
        else:
            shape = wide[1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1]
    return shape


def _number(picture: Image.Image, shapes: Sequence[Bits], palette: Sequence[Colour], font_px: int) -> None:
    """Each mask's number in its middle; one too small for it has it beside, clear of numbers and masks."""
    if len(shapes) < 2:
        return
    taken: list[Box] = []
    outside: list[int] = []
    covered = np.logical_or.reduce(shapes)
    for index, shape in enumerate(shapes):
        if not shape.any():
            continue
        x, y, depth = _middle(shape)
        if depth > font_px:
            taken.append(chip(picture, (x, y), index + 1, palette[index], font_px))
        else:
            outside.append(index)
    for index in outside:
        ys, xs = np.flatnonzero(shapes[index].any(1)), np.flatnonzero(shapes[index].any(0))
        wide, high = chip_size(index + 1, font_px)
        middle_x, middle_y = (int(xs[0]) + int(xs[-1])) / 2, (int(ys[0]) + int(ys[-1])) / 2
        right, below = int(xs[-1]) - middle_x + 0.7 * wide, int(ys[-1]) - middle_y + 0.8 * high
        sides = [(0, -below), (0, below), (right, 0), (-right, 0)]
        corners = [(side, up) for side in (right, -right) for up in (-below, below)]
        places = [(middle_x + dx, middle_y + dy) for dx, dy in sides + corners]
        boxes = [(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2) for x, y in places]
        best = places[int(np.argmin([_cost(box, taken, covered) for box in boxes]))]
        taken.append(chip(picture, best, index + 1, palette[index], font_px))


def _cost(box: Box, taken: Sequence[Box], covered: Bits) -> float:
    """How bad a place for a number is: pixels over numbers and masks, less those in the picture."""
    left, top, right, bottom = (max(0, round(edge)) for edge in box)
    over_masks = float(covered[top:bottom, left:right].sum())
    frame = (0.0, 0.0, float(covered.shape[1]), float(covered.shape[0]))
    return over_masks + 2 * sum(_shared(box, other) for other in taken) - 3 * _shared(box, frame)


def _shared(a: Box, b: Box) -> float:
    """Pixels two boxes have in common."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _middle(shape: Bits) -> tuple[int, int, int]:
    """x, y of the pixel deepest inside, and about how deep it is in pixels."""
    step = max(1, max(shape.shape) // 160)
    small = np.pad(shape[::step, ::step], 1)
    layers, deepest = 0, small
    while small.any():
        deepest, layers = small, layers + 1
        small = ~grown(~small, 1)
    ys, xs = np.nonzero(deepest)
    if not len(ys):  # thinner than the sampling step
        ys, xs = np.nonzero(shape)
        return int(xs[0]), int(ys[0]), 0
    nearest = int((np.abs(ys - ys.mean()) + np.abs(xs - xs.mean())).argmin())
    return (int(xs[nearest]) - 1) * step, (int(ys[nearest]) - 1) * step, layers * step


def _joined(picture: Image.Image, side: Image.Image, beside: bool) -> Image.Image:
    if beside:
        canvas = Image.new("RGB", (picture.width + side.width, max(picture.height, side.height)), PAPER)
        canvas.paste(side, (picture.width, 0))
    else:
        canvas = Image.new("RGB", (max(picture.width, side.width), picture.height + side.height), PAPER)
        canvas.paste(side, (0, picture.height))
    canvas.paste(picture, (0, 0))
    return canvas
