"""An answer as JSON, and the fields of a form as a query: the same over `pixelrt serve`, Triton and Ray Serve."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pixelrt import coco
from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.overlay import draw
from pixelrt.queries import Query, query_in_words
from pixelrt.segmenter import Frame, Result

# Field of a form whose value is JSON -> an example.
FORMS = {
    "classes": 'classes=["mug", "table"]',
    "things": 'things=["mug"]',
    "min_score": "min_score=0.5",
    "several": "several=true",
    "none_below": "none_below=0.5",
    "points": "points=[[120, 80]]",
    "scribbles": "scribbles=[[[10, 10], [60, 40]]]",
    "boxes": "boxes=[[10, 10, 90, 60]]",
    "masks": 'masks=[{"size": [480, 640], "counts": "…"}]',
}


class Told(Protocol):
    """An answer, and how it came about."""

    @property
    def frame(self) -> Frame: ...
    @property
    def result(self) -> Result: ...
    @property
    def query(self) -> str | Query: ...
    @property
    def reused(self) -> bool:
        """Whether the picture was encoded before."""
        ...

    @property
    def timing_ms(self) -> Mapping[str, float]: ...


def document(told: Told, model: str, label_map: bool = False, overlay: bool = False) -> dict[str, Any]:
    """What the program writes to answer.json, with what belongs to this request."""
    frame, result = told.frame, told.result
    size = frame.image.shape[:2]
    found = {
        "id": f"seg-{uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "image": {"size": list(size), "reused": told.reused},  # H, W
        **result.to_json(),
        "timing_ms": {stage: round(float(spent), 3) for stage, spent in told.timing_ms.items()},
    }
    if label_map:
        found["label_map"] = _base64(coco.label_png(numbered(result.masks, (size[0], size[1]))))
    if overlay:
        drawn = io.BytesIO()
        draw(frame.image, result.masks, query_in_words(told.query), result.text).save(
            drawn, "PNG", compress_level=3
        )
        found["overlay"] = _base64(drawn.getvalue())
    return found


def numbered(masks: Any, size: tuple[int, int]) -> NDArray[np.int32]:
    """(H, W): the number of the mask at each pixel, from 1 in the order of the answer, 0 where there is none; where
    masks overlap the later one."""
    numbers = np.zeros(size, np.int32)
    mask: Mask
    for number, mask in enumerate(masks, start=1):
        numbers[mask.mask] = number
    return numbers


def query_of(fields: Mapping[str, str | None]) -> dict[str, Any]:
    """The fields of a form as a query of pixelrt.query_json. Raises InputError for one that is not JSON."""
    given = {key: text for key, text in fields.items() if text is not None}
    return {
        key: _parsed(key, text) if key in FORMS else text
        for key, text in given.items()
        if key in FORMS or key in ("prompt", "task")
    }


def _parsed(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"{key} is {text[:60]!r}, which is not JSON. Give it as in -F '{FORMS[key]}'."
        ) from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
