"""Pictures and questions to calibrate and to check with: any folder of pictures, `prompts.jsonl` if it has one.

One JSON object a line: {"image": "scene_01.png", "prompt": "Segment the …", "answer": "Sure, it is [SEG]."}, the
answer as the model would give it, and optional. Without prompts.jsonl every picture gets QUESTION.

A family that takes typed queries (PSALM) is asked what a line has of "refer": TEXT, "classes": [NAME, …],
"points": [[x, y], …] and "boxes": [[x0, y0, x1, y1], …], a question each (points and boxes together are one). Where
no line has any of them, it is asked the prompts, as sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer, Regions

PROMPTS = "prompts.jsonl"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
QUESTION = "Segment the objects in the image."
DEFAULT = Path(__file__).resolve().parents[3] / "calib_data"  # of a source tree; a wheel has none


TYPED = ("refer", "classes", "points", "boxes")


@dataclass(frozen=True)
class Record:
    """query: of a family that takes typed ones, which then does not look at prompt and answer."""

    image: Path
    prompt: str
    answer: str | None = None
    query: Classes | Refer | Regions | None = None


def read_records(folder: Path | None, typed: bool = False) -> list[Record]:
    """folder: None is the project's own. typed: for a family that takes typed queries. Raises InputError."""
    if folder is None:
        if not DEFAULT.is_dir():
            raise InputError(
                "This precision needs pictures to calibrate with, and none came with pixelrt here: give a folder of "
                "some that are like yours with --calib DIR."
            )
        folder = DEFAULT
    if not folder.is_dir():
        raise InputError(f"--calib {folder} is no folder. Give one that holds pictures.")
    pictures = {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}
    if not pictures:
        raise InputError(
            f"--calib {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}). Give one that does."
        )
    listed = folder / PROMPTS
    found = (
        _listed(listed, pictures) if listed.is_file() else [Record(p, QUESTION) for p in pictures.values()]
    )
    if not typed:
        worded = [record for record in found if record.query is None]
        if not worded:
            raise InputError(f'{listed} holds no "prompt", which this model is asked. Add some.')
        return worded
    queries = [record for record in found if record.query is not None]
    return queries or [Record(r.image, r.prompt, None, Refer(r.prompt)) for r in found]


def answered(folder: Path | None) -> list[Record]:
    """Questions in words that come with their answers; none where there is no folder. Raises InputError."""
    if folder is None and not DEFAULT.is_dir():
        return []
    return [record for record in read_records(folder) if record.answer]


def _listed(file: Path, pictures: dict[str, Path]) -> list[Record]:
    """All questions, those in words and the typed ones."""
    records: list[Record] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}). Write one object a line.") from None
        known = isinstance(row, dict) and isinstance(row.get("image"), str)
        known = known and all(isinstance(row.get(key), str | None) for key in ("prompt", "answer"))
        if not known or not {"prompt", *TYPED} & row.keys():
            raise InputError(f'{where} is {line[:60]!r}, wanted {{"image": NAME, "prompt": TEXT}}.')
        if row["image"] not in pictures:
            raise InputError(f"{where} names {row['image']!r}, which is no picture in {file.parent}.")
        image = pictures[row["image"]]
        if row.get("prompt") is not None:
            records.append(Record(image, row["prompt"], row.get("answer")))
        try:
            records += [Record(image, "", None, query) for query in _queries(row)]
        except (InputError, TypeError) as error:
            raise InputError(f"{where}: {error}") from None
    if not records:
        raise InputError(f"{file} holds no questions. Write one object a line, or remove the file.")
    return records


def _queries(row: Mapping[str, Any]) -> Iterator[Classes | Refer | Regions]:
    if "refer" in row:
        yield Refer(row["refer"])
    if "classes" in row:
        yield Classes(row["classes"])
    if {"points", "boxes"} & row.keys():
        yield Regions(points=row.get("points", ()), boxes=row.get("boxes", ()))
