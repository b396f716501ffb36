"""The worst answers of an evaluation as one picture: the image, what was wanted, what came, and the prompt."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelrt_export.tiny.records import Record

A_KIND = 2  # of each kind of question, at most
SIDE, GAP, TEXT = 180, 8, 66  # px of a picture's longer side, between pictures, of the words under them
COLUMNS = 2
PAINTS = ((255, 80, 80), (80, 220, 100), (90, 140, 255), (255, 220, 70), (230, 110, 255), (80, 230, 235))


class Failures:
    """Keeps the worst records of each kind whose goodness is below `good`; one of a seed, whatever the background."""

    def __init__(self, good: float = 0.5):
        self.good = good
        self.kept: dict[str, list[Record]] = {}

    def add(self, record: Record) -> None:
        if record.goodness < self.good:
            worst = {r.seed: r for r in self.kept.get(record.kind, [])}
            if record.seed not in worst or record.goodness < worst[record.seed].goodness:
                worst[record.seed] = record
            self.kept[record.kind] = sorted(worst.values(), key=lambda r: r.goodness)[:A_KIND]

    def write(self, folder: Path) -> Path | None:
        """FOLDER/failures.jpg; None where there are none."""
        records = [record for kind in self.kept.values() for record in kind]
        if not records:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        sheet(records).save(folder / "failures.jpg", quality=75)
        return folder / "failures.jpg"


def sheet(records: list[Record]) -> Image.Image:
    """COLUMNS failures a row, each three pictures wide."""
    width, height = 3 * (SIDE + GAP) + 2 * GAP, SIDE + TEXT + GAP
    rows = -(-len(records) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    for k, record in enumerate(records):
        page.paste(_case(record, (width, height)), (k % COLUMNS * width, k // COLUMNS * height))
    return page


def _case(record: Record, size: tuple[int, int]) -> Image.Image:
    case = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(case), ImageFont.load_default(size=12)
    pictures = {
        record.kind: record.image,
        "wanted": painted(record.image, record.wanted),
        "got": painted(record.image, record.got),
    }
    for k, (title, picture) in enumerate(pictures.items()):
        image = Image.fromarray(picture)
        scale = SIDE / max(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
        left = GAP + k * (SIDE + GAP)
        draw.text((left, 0), title, "black", font)
        case.paste(image, (left, 16))
    said = [f"{record.prompt}   (seed {record.seed})"]
    if record.wanted_text or record.got_text:
        said += [f"wanted: {record.wanted_text}", f"got: {record.got_text}"]
    lines = [line for text in said for line in textwrap.wrap(text, 92)[:2]]
    draw.multiline_text((GAP, SIDE + 18), "\n".join(lines[:4]), "black", font, spacing=2)
    return case


def painted(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Masks in colours over a darkened picture, the first one at the bottom."""
    out = image.astype(np.float32) * 0.35
    for k, mask in enumerate(masks):
        out[mask] = 0.35 * image[mask] + 0.65 * np.array(PAINTS[k % len(PAINTS)], np.float32)
    return out.clip(0, 255).astype(np.uint8)
