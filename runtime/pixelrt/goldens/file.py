"""goldens.npz of a bundle: a zip as recording_file.py writes them.

recording.json   format, family, `questions` (label -> query), `max_new_tokens`, `choices` (place -> token, how far
                 ahead of the second best it is, root mean square of the logits), `onnxruntime`
picture.npy      uint8 (H, W, 3)
given/NAME.npy   float16: what a stage is given in place of what the stage before it gave
seen/STAGE/NAME.npy   float32: sketch of an output
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt import query_json, recording_file
from pixelrt.bundle import Bundle
from pixelrt.engine import Array
from pixelrt.errors import InputError
from pixelrt.image import Rgb
from pixelrt.manifest import Each, check
from pixelrt.queries import Query

FORMAT = 1
FILE, KEY = "goldens.npz", "goldens"  # in the folder; in the manifest
PICTURE, GIVEN, SEEN = "picture", "given/", "seen/"
FORM = {
    "format": int,
    "family": str,
    "questions": Each(dict),
    "max_new_tokens": int,
    "choices": Each({"token": int, "margin": float, "scale": float}),
}


@dataclass(frozen=True)
class Goldens:
    """questions: label -> query. given, seen: see above; a key of `seen` is STAGE/NAME."""

    family: str
    picture: Rgb
    questions: Mapping[str, str | Query]
    max_new_tokens: int
    choices: Mapping[str, Mapping[str, Any]]
    given: Mapping[str, Array]
    seen: Mapping[str, Array]

    def write(self, file: Path, about: Mapping[str, Any]) -> None:
        """about: joins recording.json. Raises InputError for goldens that are too large."""
        document = {
            "format": FORMAT,
            "family": self.family,
            "questions": {label: query_json.to_json(query) for label, query in self.questions.items()},
            "max_new_tokens": self.max_new_tokens,
            "choices": self.choices,
            **about,
        }
        arrays = {
            PICTURE: self.picture,
            **{GIVEN + name: array for name, array in self.given.items()},
            **{SEEN + name: array for name, array in self.seen.items()},
        }
        recording_file.write(file, document, arrays)


def hash_of(bundle: Bundle) -> str:
    """SHA-256 of its goldens, "" where it has none."""
    name = bundle.manifest.get(KEY, {}).get("file")
    return str(bundle.manifest["files"][name]["sha256"]) if name in bundle.manifest["files"] else ""


def read_goldens(bundle: Bundle) -> Goldens:
    """Raises InputError where the bundle has none, or some that are not its own."""
    if not hash_of(bundle):
        raise InputError(
            f"{bundle.path} holds no golden outputs to compare with: an older pixelrt exported it, or --no-goldens "
            "was given. Export it again."
        )
    path = bundle.file(bundle.manifest[KEY]["file"])
    try:
        about, arrays = recording_file.read(path)
        if about.get("format") != FORMAT:
            raise InputError(f"its format is {about.get('format')!r:.20}, this pixelrt reads {FORMAT}")
        check(about, FORM, recording_file.ABOUT)
        picture = arrays.pop(PICTURE)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise InputError(f"its picture has shape {picture.shape}")
        size = picture.shape[:2]
        questions = {label: query_json.from_json(query, size) for label, query in about["questions"].items()}
    except KeyError as error:
        raise InputError(f"{path} lacks {error}. Export the bundle again.") from None
    except InputError as error:  # whose advice is about recordings
        what = str(error).partition(". ")[0].removesuffix(".")
        raise InputError(f"{path} cannot be used: {what}. Export the bundle again.") from None
    parts = [
        {name.removeprefix(begin): array for name, array in arrays.items() if name.startswith(begin)}
        for begin in (GIVEN, SEEN)
    ]
    return Goldens(
        about["family"], picture, questions, about["max_new_tokens"], about["choices"], parts[0], parts[1]
    )
