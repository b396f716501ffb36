"""POST /v1/segment: a picture and a question as a form; the answer as JSON."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from fastapi import File, Form, HTTPException, Request, UploadFile
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from pixelrt import coco
from pixelrt.masks import Mask
from pixelrt.overlay import draw
from pixelrt.queries import query_in_words
from pixelrt.serve import asking
from pixelrt.serve.worker import Answered, Worker

Text = Annotated[str | None, Form()]
Json = Annotated[str | None, Form(description="as JSON")]
EXAMPLE = "curl -F image=@photo.jpg -F prompt='Segment the mug.'"


def route(worker: Worker) -> Any:
    async def segment(
        request: Request,
        image: Annotated[UploadFile | None, File(description="a PNG, JPEG, WebP or TIFF")] = None,
        prompt: Text = None,
        task: Text = None,
        classes: Json = None,
        things: Json = None,
        min_score: Json = None,
        several: Json = None,
        none_below: Json = None,
        points: Json = None,
        scribbles: Json = None,
        boxes: Json = None,
        masks: Json = None,
        max_new_tokens: Annotated[int | None, Form(ge=1)] = None,
        label_map: Annotated[bool, Form(description="add a PNG whose values are the masks' numbers")] = False,
        overlay: Annotated[bool, Form(description="add a PNG to look at")] = False,
    ) -> dict[str, Any]:
        """Ask about a picture: a `prompt`, or a `task` with its own fields, which are those of pixelrt.query_json."""
        if image is None:
            raise HTTPException(400, f"The request has no image. Send one, for example: {EXAMPLE}")
        values = {
            "classes": classes, "things": things, "min_score": min_score, "several": several,
            "none_below": none_below, "points": points, "scribbles": scribbles, "boxes": boxes, "masks": masks,
        }  # fmt: skip
        query = {key: _parsed(key, text) for key, text in values.items() if text is not None}
        query |= {key: text for key, text in (("prompt", prompt), ("task", task)) if text is not None}
        answered = await asking.answer(
            worker, request, await image.read(), query, max_new_tokens=max_new_tokens
        )
        # Run lengths and PNGs take milliseconds each, in which others want to be heard.
        told: dict[str, Any] = await run_in_threadpool(
            document, answered, worker.settings.name, label_map, overlay
        )
        return told

    return segment


def document(
    answered: Answered, model: str, label_map: bool = False, overlay: bool = False
) -> dict[str, Any]:
    """What the program writes to answer.json, with what belongs to this request."""
    frame, result = answered.frame, answered.result
    size = frame.image.shape[:2]
    found = {
        "id": f"seg-{uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "image": {"size": list(size), "reused": answered.reused},  # H, W
        **result.to_json(),
        "timing_ms": {stage: round(float(spent), 3) for stage, spent in answered.timing_ms.items()},
    }
    if label_map:
        found["label_map"] = _base64(coco.label_png(numbered(result.masks, (size[0], size[1]))))
    if overlay:
        drawn = io.BytesIO()
        draw(frame.image, result.masks, query_in_words(answered.question.query), result.text).save(
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


def _parsed(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise HTTPException(
            400, f"{key} is {text[:60]!r}, which is not JSON. Give it as in -F '{FORMS[key]}'."
        ) from None


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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
