"""A question as JSON, and back: in recordings and over HTTP. Keys are named as the program's options are.

{"prompt": "Segment the mug."}                                             a question in words
{"task": "panoptic", "classes": ["mug", "table"], "things": ["mug"]}       or "instance", "semantic"
{"task": "referring", "prompt": "the red mug", "several": true}            prompt: one sentence or several
{"task": "interactive", "points": [[120, 80]], "boxes": [[10, 10, 90, 60]]}   also "scribbles", "masks" (COCO RLE)

Only the keys shown in the first place are needed. Places are x, y in pixels of the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelrt import rle
from pixelrt.errors import InputError
from pixelrt.queries import KINDS, TASKS, Classes, Query, Refer, Regions, Track

Form = type | tuple[type, ...]
NUMBER = (int, float)
_CLASSES: dict[str, Form] = {"classes": list, "things": list, "min_score": NUMBER}
# Task -> its keys and what each holds. None: a question in words.
KEYS: dict[str | None, dict[str, Form]] = {
    None: {"prompt": str},
    **dict.fromkeys(TASKS, _CLASSES),
    "referring": {"prompt": (str, list), "several": bool, "none_below": NUMBER},
    "interactive": dict.fromkeys(KINDS, list),
}
ASKED = tuple(task for task in KEYS if task is not None)
_WORDS = {list: "a list", bool: "true or false", NUMBER: "a number", str: "a text", (str, list): "a text"}


def to_json(query: str | Query) -> dict[str, Any]:
    """Raises InputError for a question about two pictures."""
    if isinstance(query, str):
        return {"prompt": query}
    if isinstance(query, Classes):
        things = [name for name in query.names if name in (query.things or ())]
        named = {"classes": list(query.names), "things": things}
        return {"task": query.task, **named, "min_score": float(query.min_score)}
    if isinstance(query, Refer):
        told = {"prompt": list(query.sentences), "several": bool(query.several)}
        return {"task": "referring", **told, "none_below": float(query.none_below)}
    if isinstance(query, Track):
        raise InputError("a question about two pictures cannot be written. Ask Regions of one.")
    regions = {kind: [_region(item) for item in getattr(query, kind)] for kind in KINDS}
    return {"task": "interactive", **regions}


def from_json(entry: Any, size: tuple[int, ...]) -> str | Query:
    """size: H, W of the picture. Raises InputError for anything but the forms above."""
    if not isinstance(entry, dict):
        raise InputError(f'the query is {entry!r:.40}. Give an object, for example {{"prompt": "the mug"}}.')
    task = entry.get("task")
    if task is not None and (not isinstance(task, str) or task not in KEYS):
        raise InputError(f"the task is {task!r:.40}. Choose one of: {', '.join(ASKED)}.")
    given = {key: value for key, value in entry.items() if key != "task" and value is not None}
    for key, value in given.items():
        _check(key, value, task)
    if task is None:
        if "prompt" not in given:
            raise InputError("the query has neither a prompt nor a task. Give a prompt.")
        return str(given["prompt"])
    if task == "referring":
        if "prompt" not in given:
            raise InputError('the task referring takes a prompt. Say what to find: "the red mug".')
        return Refer(given["prompt"], given.get("several", False), given.get("none_below", 0.0))
    if task == "interactive":
        return Regions(**{kind: [_back(item, size) for item in given.get(kind, [])] for kind in KINDS})
    if "classes" not in given:
        raise InputError(f'the task {task} needs class names. Give classes, for example ["mug", "table"].')
    things = given.get("things")
    if things is not None and not all(isinstance(thing, str) for thing in things):
        raise InputError(f"things is {things!r:.60}. Give a list of class names.")
    return Classes(given["classes"], task, things, given.get("min_score", 0.0))


def _check(key: str, value: Any, task: str | None) -> None:
    """Keys of another task would be ignored, and a word in a number's place be misread: refuse them."""
    keys = KEYS[task]
    if key not in keys:
        where = f"the task {task} does not take it" if task else "it needs a task"
        raise InputError(f"the query has {key!r:.40}, but {where}. It takes {', '.join(keys)}.")
    form = keys[key]
    if not isinstance(value, form) or (isinstance(value, bool) and form is not bool):
        raise InputError(f"{key} is {value!r:.60}. Give {_WORDS[form]}.")


def _region(item: Any) -> Any:
    return dict(rle.encode(item)) if isinstance(item, np.ndarray) else item


def _back(item: Any, size: tuple[int, ...]) -> Any:
    if not isinstance(item, dict):
        return item
    shape, counts = item.get("size"), item.get("counts")
    if not isinstance(shape, list) or not isinstance(counts, str):
        raise InputError('a mask is no RLE. Give {"size": [height, width], "counts": "…"}.')
    # Before it is unpacked: a short text can stand for any number of pixels.
    if shape != list(size):
        raise InputError(
            f"a region has size {shape!r:.40}, the picture {list(size)}. Give the picture's size."
        )
    return rle.decode(rle.Rle(size=list(size), counts=counts))
