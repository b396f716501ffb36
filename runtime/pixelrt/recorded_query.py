"""A question as JSON, and back. Masks are COCO run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelrt import rle
from pixelrt.errors import InputError
from pixelrt.manifest import check
from pixelrt.queries import KINDS, Classes, Query, Refer, Regions, Track

FORMS: dict[str, Any] = {
    "words": {"text": str},
    "classes": {"names": [str], "task": str, "things": [str], "min_score": float},
    "refer": {"sentences": [str], "several": bool, "none_below": float},
    "regions": {kind: [object] for kind in KINDS},
}


def to_json(query: str | Query) -> dict[str, Any]:
    if isinstance(query, str):
        return {"kind": "words", "text": query}
    if isinstance(query, Classes):
        things = [name for name in query.names if name in (query.things or ())]
        named = {"names": list(query.names), "task": query.task, "things": things}
        return {"kind": "classes", **named, "min_score": float(query.min_score)}
    if isinstance(query, Refer):
        told = {"sentences": list(query.sentences), "several": bool(query.several)}
        return {"kind": "refer", **told, "none_below": float(query.none_below)}
    if isinstance(query, Track):
        raise InputError("a question about two pictures cannot be written. Ask Regions of one.")
    return {"kind": "regions", **{kind: [_region(item) for item in getattr(query, kind)] for kind in KINDS}}


def from_json(entry: dict[str, Any], size: tuple[int, ...]) -> str | Query:
    """size: H, W of the picture. Raises InputError for anything that `to_json` does not write."""
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in FORMS:
        raise InputError(f"its query is of kind {kind!r:.40}")
    check(entry, FORMS[kind], "its query")
    if kind == "words":
        return str(entry["text"])
    if kind == "classes":
        return Classes(entry["names"], entry["task"], entry["things"], entry["min_score"])
    if kind == "refer":
        return Refer(entry["sentences"], entry["several"], entry["none_below"])
    return Regions(**{kind: [_back(item, size) for item in entry[kind]] for kind in KINDS})


def _region(item: Any) -> Any:
    return dict(rle.encode(item)) if isinstance(item, np.ndarray) else item


def _back(item: Any, size: tuple[int, ...]) -> Any:
    if not isinstance(item, dict):
        return item
    check(item, {"size": (int, int), "counts": str}, "a region")
    if tuple(item["size"]) != tuple(size):
        raise InputError(f"a region has size {item['size']}, the picture {list(size)}")
    return rle.decode(rle.Rle(size=item["size"], counts=item["counts"]))
