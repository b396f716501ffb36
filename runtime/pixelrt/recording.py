"""One question as it went through a bundle: picture, ids, and what each graph was given and gave.

    answer = pixelrt.record(segmenter, "picture.png", "Segment the mug.", "wrong.npz")

`pixelrt verify BUNDLE CHECKPOINT --replay wrong.npz` runs it again where the checkpoint is. The picture is stored as
decoded pixels: what a decoder makes of a JPEG differs from one machine to the next. A segmenter that does not record
has none of this in it.
"""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt import query_json, recording_file, rle
from pixelrt.engine import Array, Engine, Joined, Value
from pixelrt.errors import InputError
from pixelrt.image import Rgb, open_image
from pixelrt.manifest import Each, check
from pixelrt.queries import Query, Track
from pixelrt.segmenter import Frame, Result, Segmenter

FORMAT = 1
GRAPHS = ("encoder", "language", "pixel_decoder")  # a family keeps each as `_NAME`
PACKAGES = (
    "pixelrt",
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
)
PICTURE = "picture"
LARGEST_MASKS = 4 << 30  # pixels of all masks together
RLE = {"size": (int, int), "counts": str}
CALL = {"inputs": Each(str), "outputs": Each(str)}
GRAPH = {
    "file": str,
    "cache?": {"in_place", "concat"},
    "activations": {"float32", "float16"},
    "calls": [CALL],
}
FORM = {
    "bundle": {"sha256": str, "name": str, "family": str, "precision": Each(str), "files": Each(str)},
    "machine": Each(str),
    "backend": str,
    "query": dict,
    "options": {"max_new_tokens": int, "seg_runs": {"complete", "original"}},
    "prompt_ids": [object],
    "steps": [{"token": int, "best": int, "second": int, "margin": object}],
    "answer": {"text": str, "token_ids?": [int], "masks": [{"rle": RLE}]},
    "graphs": Each(GRAPH),
}


@dataclass
class Call:
    """One run of a graph; caches are left out."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


class Notes:
    """What each graph was given and gave, in order."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        # By the id of the first, which is held so that it stays.
        self._copies: dict[int, tuple[Value | Joined, Array]] = {}

    def clear(self) -> None:
        self.calls, self._copies = {}, {}

    def copied(self, arrays: Mapping[str, Value | Joined], cache: str) -> dict[str, Array]:
        """Copies, for a buffer may be used again; one of an array that passes by twice unchanged."""
        found = {}
        for name, value in arrays.items():
            if not name.startswith(cache):
                seen = self._copies.get(id(value))
                if seen is None or seen[0] is not value or not np.array_equal(seen[1], value):
                    seen = self._copies[id(value)] = value, np.array(value)
                found[name] = seen[1]
        return found


class Noted:
    """An engine that takes notes. Whatever else the engine has, it has."""

    def __init__(self, graph: str, engine: Engine, notes: Notes) -> None:
        self.graph, self.engine, self.notes = graph, engine, notes
        self.file, self.memory = engine.file, engine.memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        given = self.notes.copied(inputs, "past.")
        outputs = self.engine(inputs, into)
        self.notes.calls.setdefault(self.graph, []).append(
            Call(given, self.notes.copied(outputs, "present."))
        )
        return outputs


def noted(segmenter: Segmenter) -> tuple[Segmenter, Notes]:
    """A twin of a loaded segmenter that shares its graphs and takes notes; the segmenter itself is left alone.

    It takes no shortcut: what is written and compared has all of the prompt, and one row of logits a token.
    """
    twin, notes = plain(segmenter), Notes()
    for graph in GRAPHS:
        setattr(twin, f"_{graph}", Noted(graph, getattr(segmenter, f"_{graph}"), notes))
    return twin, notes


def plain(segmenter: Segmenter) -> Segmenter:
    """A twin that reads each prompt whole, and no token before the model has chosen it; the segmenter itself is left
    alone."""
    twin = copy.copy(segmenter)
    for shortcut in ("drafts", "prefixes"):
        if hasattr(twin, shortcut):
            setattr(twin, shortcut, None)
    return twin


def recorded(
    segmenter: Segmenter, image: Any, prompt: str | Query, file: Path, max_new_tokens: int, seg_runs: str
) -> tuple[Frame, Result]:
    """Answer a question from the picture on, and write all of it to `file`. Raises InputError."""
    recording_file.check_target(file)
    if isinstance(prompt, Track) or isinstance(image, Frame):
        what = "Track, with two" if isinstance(prompt, Track) else "a Frame, already encoded"
        raise InputError(f"a recording holds one picture, not {what}. Give a picture, and Regions of it.")
    twin, notes = noted(segmenter)
    picture = open_image(image)
    ids = twin.check(prompt, picture, max_new_tokens, seg_runs)
    frame = twin.encode(picture)
    answer = twin.segment(frame, prompt, max_new_tokens=max_new_tokens, seg_runs=seg_runs)
    document = answer.to_json()
    about = {
        "format": FORMAT,
        "bundle": _identity(segmenter),
        "machine": _machine(),
        "backend": segmenter.backend,
        "query": query_json.to_json(prompt),
        "options": {"max_new_tokens": max_new_tokens, "seg_runs": seg_runs},
        "prompt_ids": ids,
        "steps": steps(notes.calls, document.get("token_ids", [])),
        "answer": document,
    }
    arrays: dict[str, Array] = {PICTURE: frame.image}
    about["graphs"] = {graph: _listed(graph, twin, calls, arrays) for graph, calls in notes.calls.items()}
    recording_file.write(file, about, arrays)
    return frame, answer


def steps(calls: Mapping[str, Sequence[Call]], token_ids: Sequence[int]) -> list[dict[str, Any]]:
    """For each token of the answer the two best ids, and how far apart their logits are.

    A token that is not `best` was not the model's choice: a run of codebook tokens, once begun, is completed.
    """
    rows = [call.outputs["logits"][0] for call in calls.get("language", ()) if "logits" in call.outputs]
    if not rows or not token_ids:
        return []
    found = []
    for token, row in zip(token_ids, np.concatenate(rows)[-len(token_ids) :], strict=True):
        best = int(row.argmax())
        second = int(np.argpartition(np.where(np.arange(len(row)) == best, -np.inf, row), -1)[-1])
        margin = float(np.float64(row[best]) - row[second])
        found.append({"token": int(token), "best": best, "second": second, "margin": margin})
    return found


@dataclass(frozen=True)
class Recording:
    """A recording that was read; docs/precision.md describes `about`."""

    about: dict[str, Any]
    picture: Rgb
    query: str | Query
    calls: dict[str, list[Call]]
    masks: list[Array]  # (H, W) bool

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Recording:
        """Raises InputError for anything that is no recording, or not whole."""
        path = Path(file)
        about, arrays = recording_file.read(path)
        number = about.get("format")
        if type(number) is not int or not 1 <= number <= FORMAT:
            raise InputError(
                f"{path} is a recording of format {number!r:.20}; this pixelrt reads {FORMAT}. Upgrade."
            )
        try:
            check(about, FORM, recording_file.ABOUT)
            picture = arrays.pop(PICTURE)
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
                raise InputError(f"its picture has shape {picture.shape}")
            if len(about["answer"]["masks"]) * picture.shape[0] * picture.shape[1] > LARGEST_MASKS:
                raise InputError(f"{len(about['answer']['masks'])} masks are too many")
            masks = [_mask(mask["rle"], picture) for mask in about["answer"]["masks"]]
            calls = {
                graph: [
                    Call(
                        *(
                            {name: arrays[at] for name, at in call[side].items()}
                            for side in ("inputs", "outputs")
                        )
                    )
                    for call in entry["calls"]
                ]
                for graph, entry in about["graphs"].items()
            }
            query = query_json.from_json(about["query"], picture.shape[:2])
        except KeyError as error:
            raise InputError(f"{path} lacks {error}. Record it again.") from None
        except InputError as error:  # whose advice is about bundles
            what = str(error).partition(". ")[0].removesuffix(".")
            raise InputError(f"{path} is not whole: {what}. Record it again.") from None
        missing = [graph for graph in GRAPHS[:2] if not calls.get(graph)]
        if missing or set(calls) - set(GRAPHS) or len(calls["encoder"]) != 1:
            raise InputError(f"{path} has no calls of {missing or sorted(calls)}. Record it again.")
        return cls(about, picture, query, calls, masks)

    @property
    def token_ids(self) -> list[int]:
        return list(self.about["answer"].get("token_ids", []))


def _mask(entry: rle.Rle, picture: Rgb) -> Array:
    if tuple(entry["size"]) != picture.shape[:2]:
        raise InputError(f"a mask has size {entry['size']}, the picture {picture.shape[:2]}")
    return rle.decode(entry)


def _identity(segmenter: Segmenter) -> dict[str, Any]:
    manifest = segmenter.bundle.manifest
    return {
        "sha256": segmenter.bundle.sha256,
        **{key: manifest[key] for key in ("name", "family", "precision")},
        "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
    }


def _machine() -> dict[str, str]:
    found = {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _listed(graph: str, twin: Segmenter, calls: Sequence[Call], arrays: dict[str, Array]) -> dict[str, Any]:
    """The JSON of a graph's calls; their tensors join `arrays`, each once."""
    known = {id(array): name for name, array in arrays.items()}

    def place(name: str, array: Array) -> str:
        if id(array) not in known:
            known[id(array)] = name
            arrays[name] = array
        return known[id(array)]

    file = getattr(twin, f"_{graph}").file
    return {
        "file": file.path.name,
        **({"cache": file.cache} if file.cache else {}),
        "activations": file.activations,
        "calls": [
            {
                "inputs": {n: place(f"{graph}.{i}.in.{n}", a) for n, a in call.inputs.items()},
                "outputs": {n: place(f"{graph}.{i}.out.{n}", a) for n, a in call.outputs.items()},
            }
            for i, call in enumerate(calls)
        ],
    }
