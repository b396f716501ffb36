"""The figures of a training log as curves: one panel each, written as a PNG.

python -m pixelrt_export.tiny.curves LOG.jsonl CURVES.png
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, WIDTH, HEIGHT = 3, 420, 250  # panels in a row; px of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 34  # px around a panel's axes
LINE, GRID, WORDS = (30, 90, 180), (225, 225, 225), (40, 40, 40)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def written(value: float) -> str:
    """7000 -> '7k', 0.003 -> '0.003'"""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.4g}"


def panel(name: str, points: list[tuple[float, float]]) -> Image.Image:
    """points: step, value; those that are no finite number are left out, of one step the last one counts."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(size=13), ImageFont.load_default(size=16)
    points = sorted({x: y for x, y in points if math.isfinite(y)}.items())
    latest = f"   {points[-1][1]:.4g}" if points else "   no figures"
    draw.text((LEFT, 8), name.replace("_", " ") + latest, WORDS, large)
    if len(points) < 2:
        return image
    # The first steps of a loss tower above everything: the axis ends where 98 % of the values do.
    ordered = sorted(y for _, y in points)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]
    low = 0.0 if 0 < low < 0.5 * high else low
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    start, end = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - start) / (end - start) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (min(y, high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    for value in ticks(low, high):
        _, y = place(start, value)
        draw.line([LEFT, y, WIDTH - RIGHT, y], GRID)
        draw.text((LEFT - 6, y), written(value), WORDS, small, anchor="rm")
    for value in ticks(start, end):
        x, _ = place(value, low)
        draw.line([x, TOP, x, HEIGHT - BOTTOM], GRID)
        draw.text((x, HEIGHT - BOTTOM + 5), written(value), WORDS, small, anchor="mt")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=(150, 150, 150))
    draw.line([place(x, y) for x, y in points], LINE, width=2, joint="curve")
    return image


def write_curves(log: Path, file: Path) -> None:
    """A panel for each figure in the log, over the steps. Written beside `file`, then renamed."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "progress")))
    page = Image.new("RGB", (COLUMNS * WIDTH, -(-len(names) // COLUMNS) * HEIGHT), "white")
    for k, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        page.paste(panel(name, points), (k % COLUMNS * WIDTH, k // COLUMNS * HEIGHT))
    fresh = file.with_name(file.name + ".new")
    page.save(fresh, "PNG", optimize=True)
    os.replace(fresh, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the figures of a training log as curves.")
    parser.add_argument("log", type=Path, help="log.jsonl of a training run")
    parser.add_argument("png", type=Path)
    args = parser.parse_args()
    write_curves(args.log, args.png)
