"""The folder of an answer: answer.json, overlay.png, mask_1.png, mask_2.png, ...

Of the files with these names, ours are those that an answer.json of ours names; beside any other the folder is
refused. A new answer is first written in a temporary folder inside it. Then the files of the earlier one go, its
answer.json first, and the new ones take their places, answer.json last: where there is one, the files it names
are whole and its own. A failure on the way is undone.

An answer that is streamed is there from its first mask on: an answer.json with `finished` false and no overlay names
the masks so far.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.cli import printable
from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.overlay import draw
from pixelrt.segmenter import Result

ANSWER, OVERLAY = "answer.json", "overlay.png"
# Whatever an answer can leave, of any task.
_OWN_FILE = re.compile(
    r"mask_[1-9][0-9]*\.png|panoptic\.(png|json)|instances\.json|semantic\.png|labels\.png"
)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make the folder or refuse it, before the model runs; where the block fails, what was made goes again."""
    made: list[Path] = []  # deepest first
    try:
        try:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"--out {folder} is a file. Give a folder.")
            made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            os.rmdir(tempfile.mkdtemp(prefix=".pixelrt-", dir=folder))
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {error.strerror}. Choose another folder with --out."
            ) from None
        _earlier(folder)
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


def write_answer(
    folder: Path,
    answer: Result,
    image: NDArray[np.uint8],
    prompt: str,
    about: dict[str, Any],
    stages: Mapping[str, float],
    there: int = 0,
) -> dict[str, Any]:
    """Write the files; gives what answer.json holds: `about`, then the answer, each mask with its file.

    stages: name -> ms, the picture's and the question's. there: masks whose files are there already.
    """
    document = {**about, **answer.to_json()}
    document["timing_ms"] = {name: round(spent, 3) for name, spent in stages.items()}
    document["image_size"] = [int(image.shape[0]), int(image.shape[1])]  # H, W
    document["overlay"] = OVERLAY
    files = answer.files(Path(str(about.get("image", "image"))).name)
    if files:
        document["files"] = list(files)
    for number, entry in enumerate(document["masks"], start=1):
        entry["file"] = mask_file(number)
    with _replacing(folder, keep=there) as beside:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        draw(image, answer.masks, prompt, answer.text).save(beside / OVERLAY, compress_level=3)
        for number in range(there + 1, len(answer.masks) + 1):
            _save(answer.masks[number - 1], beside / mask_file(number))
        _write(document, beside)
    return document


class GrowingAnswer:
    """The files of an answer whose masks come one by one; `write_answer` then adds the rest (there=len(masks))."""

    def __init__(self, folder: Path, image: NDArray[np.uint8], about: dict[str, Any]) -> None:
        size = [int(image.shape[0]), int(image.shape[1])]
        self.folder, self.masks = folder, list[dict[str, Any]]()
        self._head = {**about, "image_size": size, "finished": False}

    def add(self, mask: Mask, text: str) -> dict[str, Any]:
        """Write the next mask's file; gives its entry in answer.json. text: what was said so far."""
        number = len(self.masks) + 1
        entry = {**mask.to_json(), "file": mask_file(number)}
        with _replacing(self.folder, keep=len(self.masks)) as beside:
            _save(mask, beside / mask_file(number))
            _write({**self._head, "text": text, "masks": [*self.masks, entry]}, beside)
        self.masks.append(entry)
        return entry


def mask_file(number: int) -> str:
    """number: from 1."""
    return f"mask_{number}.png"


def _save(mask: Mask, file: Path) -> None:
    Image.fromarray(mask.mask.astype(np.uint8) * 255).save(file)


def _write(document: dict[str, Any], folder: Path) -> None:
    text = printable(json.dumps(document, ensure_ascii=False, indent=2))
    (folder / ANSWER).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path, keep: int) -> Iterator[Path]:
    """A folder for new files, which take the places of the earlier answer's; its first `keep` masks stay."""
    beside = Path(tempfile.mkdtemp(prefix=".pixelrt-", dir=folder))
    try:
        yield beside
        _take_places(beside, folder, {mask_file(number) for number in range(1, keep + 1)})
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take_places(beside: Path, folder: Path, keep: set[str]) -> None:
    new = sorted(os.listdir(beside), reverse=True)  # answer.json last
    aside = beside / "earlier"
    aside.mkdir()
    moves = [(folder / name, aside / name) for name in _earlier(folder) if name not in keep]
    moves += [(beside / name, folder / name) for name in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        raise


def _earlier(folder: Path) -> list[str]:
    """The files of the answer that is there, answer.json first. Raises InputError where one is not ours."""
    ours = _named_by(folder / ANSWER)
    there = sorted(
        name for name in os.listdir(folder) if name in (ANSWER, OVERLAY) or _OWN_FILE.fullmatch(name)
    )
    foreign = [name for name in there if name not in ours or (folder / name).is_dir()]
    if foreign:
        names = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise InputError(
            f"{folder} holds files that pixelrt did not write ({names}). Give another folder with --out."
        )
    return there


def _named_by(file: Path) -> list[str]:
    """What an answer.json of ours names, itself included; nothing where it is not ours."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        names = [str(mask["file"]) for mask in document["masks"]]
        names += [str(name) for name in document.get("files", [])]
        names += [str(document["overlay"])] if "overlay" in document else []
        ours = isinstance(document["bundle"]["sha256"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [ANSWER, *names] if ours else []
