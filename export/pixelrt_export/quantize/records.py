"""Pictures and questions to calibrate and to check with: any folder of pictures, `prompts.jsonl` if it has one.

One JSON object a line: {"image": "scene_01.png", "prompt": "Segment the …", "answer": "Sure, it is [SEG]."}, the
answer as the model would give it, and optional. Without prompts.jsonl every picture gets QUESTION.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pixelrt.errors import InputError

PROMPTS = "prompts.jsonl"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
QUESTION = "Segment the objects in the image."
DEFAULT = Path(__file__).resolve().parents[3] / "calib_data"  # of a source tree; a wheel has none


@dataclass(frozen=True)
class Record:
    image: Path
    prompt: str
    answer: str | None = None


def read_records(folder: Path | None) -> list[Record]:
    """folder: None is the project's own. Raises InputError."""
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
    return _listed(listed, pictures) if listed.is_file() else [Record(p, QUESTION) for p in pictures.values()]


def _listed(file: Path, pictures: dict[str, Path]) -> list[Record]:
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}). Write one object a line.") from None
        known = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("image", "prompt"))
        if not known or not isinstance(row.get("answer"), str | None):
            raise InputError(f'{where} is {line[:60]!r}, wanted {{"image": NAME, "prompt": TEXT}}.')
        if row["image"] not in pictures:
            raise InputError(f"{where} names {row['image']!r}, which is no picture in {file.parent}.")
        records.append(Record(pictures[row["image"]], row["prompt"], row.get("answer")))
    if not records:
        raise InputError(f"{file} holds no questions. Write one object a line, or remove the file.")
    return records
