"""The folder of an answer: answer.json, overlay.png, mask_1.png, mask_2.png, ...

Everything is first written in a temporary folder inside it. Then the old answer.json goes, the pictures take
their places and answer.json comes last: where there is one, the files it names are whole and its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelrt.errors import InputError
from pixelrt.overlay import draw
from pixelrt.segmenter import Result

# What an earlier answer may have left, whatever it answered.
_OWN_FILE = re.compile(r"mask_[0-9]+\.png|panoptic\.(png|json)|instances\.json|semantic\.png|labels\.png")


def write_answer(
    folder: Path, answer: Result, image: NDArray[np.uint8], prompt: str, about: dict[str, Any]
) -> dict[str, Any]:
    """Write the files; gives what answer.json holds: `about`, then the answer, each mask with its file."""
    document = {**about, **answer.to_json()}
    document["image_size"] = [int(image.shape[0]), int(image.shape[1])]  # H, W
    document["overlay"] = "overlay.png"
    files = answer.files(Path(str(about.get("image", "image"))).name)
    if files:
        document["files"] = list(files)
    for number, entry in enumerate(document["masks"], start=1):
        entry["file"] = f"mask_{number}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".pixelrt-", dir=folder))
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}. Choose another folder with --out."
        ) from None
    try:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        draw(image, answer.masks, prompt, answer.text).save(beside / "overlay.png", compress_level=3)
        for entry, mask in zip(document["masks"], answer.masks, strict=True):
            Image.fromarray(mask.mask.astype(np.uint8) * 255).save(beside / entry["file"])
        text = json.dumps(document, ensure_ascii=False, indent=2)
        (beside / "answer.json").write_text(text + "\n", encoding="utf-8")
        _take_places(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return document


def _take_places(beside: Path, folder: Path) -> None:
    (folder / "answer.json").unlink(missing_ok=True)
    for old in folder.iterdir():
        if _OWN_FILE.fullmatch(old.name):
            old.unlink()
    pictures = [file for file in beside.iterdir() if file.name != "answer.json"]
    for file in [*pictures, beside / "answer.json"]:
        os.replace(file, folder / file.name)
