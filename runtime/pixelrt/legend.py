"""The panel of an overlay: question, answer with numbers for markers, then number, label and score."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pixelrt.masks import Mask
from pixelrt.palette import Colour, ink_on

INK, QUIET, RULE, PAPER = (24, 24, 27), (96, 96, 104), (216, 216, 222), (255, 255, 255)
LINES_MAX = 12  # of the question, and of the answer

# One piece of a line: a word, or the index of a mask; and whether a blank stands before it.
Piece = tuple[str | int, bool]
Font = Any  # Pillow returns either of two unrelated classes


@cache
def font_of(size_px: int) -> Font:
    """Pillow's own font, unpacked once. Letters beyond ASCII show as boxes; answer.json has them right."""
    return ImageFont.load_default(size=size_px)


def panel(
    width: int,
    font_px: int,
    masks: Sequence[Mask],
    palette: Sequence[Colour],
    question: str | None,
    text: str | None,
) -> Image.Image:
    """RGB picture `width` pixels wide and as high as its content: one pixel if there is nothing to say."""
    font = font_of(font_px)
    margin, line_px = font_px, round(font_px * 1.5)
    inner = width - 2 * margin
    blocks = []
    if question:
        blocks.append((_lines(_pieces(question, []), inner, font), QUIET))
    if text:
        blocks.append((_lines(_pieces(text, masks), inner, font), INK))
    entries = [_entry(mask) for mask in masks]
    column_px = int(
        min(inner, max((font.getlength(a + "   " + b) for a, b in entries), default=0) + 4 * font_px)
    )
    per_row = max(1, min(len(entries), inner // max(1, column_px)))
    rows = -(-len(entries) // per_row)
    lines = sum(len(block) for block, _ in blocks)
    if not lines and not rows:
        return Image.new("RGB", (width, 1), PAPER)
    gap = round(0.8 * font_px)
    height = 2 * margin + (lines + rows) * line_px + gap * (len(blocks) + bool(rows) - 1)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    y = margin
    for block, ink in blocks:
        for line in block:
            _write(sheet, (margin, y + line_px // 2), line, palette, font, ink)
            y += line_px
        y += gap
    if blocks and rows:
        pen.line(
            [(margin, y - gap // 2), (width - margin, y - gap // 2)], fill=RULE, width=max(1, font_px // 14)
        )
    for index, (label, score) in enumerate(entries):
        row, column = divmod(index, per_row)
        x, middle = margin + column * (inner // per_row), y + row * line_px + line_px // 2
        chip(sheet, (x + font_px, middle), index + 1, palette[index], font_px)
        space = inner // per_row - 4 * font_px - font.getlength("   " + score)
        label = _cut(label, space, font)
        pen.text((x + 2.4 * font_px, middle), label, INK, font, anchor="lm")
        pen.text((x + 2.4 * font_px + font.getlength(label + "   "), middle), score, QUIET, font, anchor="lm")
    return sheet


def chip(
    picture: Image.Image, centre: tuple[float, float], number: int, colour: Colour, font_px: int
) -> tuple[float, float, float, float]:
    """Put a mask's number on the picture, on its colour with a dark rim; gives the box it covers."""
    wide, high = chip_size(number, font_px)
    tile = Image.new("RGBA", (4 * wide, 4 * high))  # four times too large, then reduced: smooth corners
    pen, rim = ImageDraw.Draw(tile), max(4, round(font_px / 3))
    pen.rounded_rectangle((0, 0, 4 * wide - 1, 4 * high - 1), 1.3 * high, (16, 16, 16))
    pen.rounded_rectangle((rim, rim, 4 * wide - 1 - rim, 4 * high - 1 - rim), 1.3 * high - rim, colour)
    font = font_of(4 * font_px)
    pen.text((2 * wide, 2 * high), str(number), ink_on(colour), font, anchor="mm")
    tile = tile.resize((wide, high), Image.Resampling.BOX)
    left, top = round(centre[0] - wide / 2), round(centre[1] - high / 2)
    picture.paste(tile, (left, top), tile)
    return left, top, left + wide, top + high


def chip_size(number: int, font_px: int) -> tuple[int, int]:
    """Width and height in pixels."""
    digits = font_of(font_px).getlength(str(number))
    return round(max(1.3 * font_px, digits + 0.7 * font_px)), round(1.3 * font_px)


def _entry(mask: Mask) -> tuple[str, str]:
    if mask.box is None:
        return mask.label or "(no words)", "empty mask"
    return mask.label or "(no words)", f"{mask.score:.2f}"


def _pieces(text: str, masks: Sequence[Mask]) -> Iterator[Piece]:
    """Words, and the masks whose spans lie in the text in place of their markers."""
    marks = sorted((mask.span, index) for index, mask in enumerate(masks) if mask.span is not None)
    at, blank = 0, False
    for (start, end), index in [*marks, ((len(text), len(text)), -1)]:
        for match in re.finditer(r"\s+|\S+", text[at:start]):
            if match[0].isspace():
                blank = True
            else:
                yield match[0], blank
                blank = False
        if index >= 0:
            yield index, blank
            blank = False
        at = max(at, end)


def _lines(pieces: Iterator[Piece], width: float, font: Font) -> list[list[Piece]]:
    """Pieces broken into lines at blanks; a word wider than a line is cut."""
    lines: list[list[Piece]] = [[]]
    used = 0.0
    for item, blank in pieces:
        if isinstance(item, str):
            item = _cut(item, width, font)
        need = _advance(item, font)
        before = font.getlength(" ") if blank and lines[-1] else 0.0
        if used + before + need > width and lines[-1]:
            if len(lines) == LINES_MAX:
                lines[-1].append(("…", True))
                break
            lines.append([])
            used, before = 0.0, 0.0
        lines[-1].append((item, before > 0))
        used += before + need
    return lines if lines[0] else []


def _advance(item: str | int, font: Font) -> float:
    if isinstance(item, str):
        return float(font.getlength(item))
    return chip_size(item + 1, font.size)[0] + 0.3 * float(font.size)


def _write(
    sheet: Image.Image,
    at: tuple[float, float],
    line: list[Piece],
    palette: Sequence[Colour],
    font: Font,
    ink: Colour,
) -> None:
    x, middle = at
    pen = ImageDraw.Draw(sheet)
    for item, blank in line:
        x += font.getlength(" ") if blank else 0
        if isinstance(item, str):
            pen.text((x, middle), item, ink, font, anchor="lm")
        else:
            chip(sheet, (x + _advance(item, font) / 2, middle), item + 1, palette[item], font.size)
        x += _advance(item, font)


def _cut(words: str, width: float, font: Font) -> str:
    if font.getlength(words) <= width:
        return words
    low, high = 0, len(words)
    while low < high:
        half = (low + high + 1) // 2
        low, high = (half, high) if font.getlength(words[:half] + "…") <= width else (low, half - 1)
    return words[:low].rstrip() + "…"
