"""POST /v1/segment: a picture and a question as a form; the answer as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import File, Form, HTTPException, Request, UploadFile
from starlette.concurrency import run_in_threadpool

from pixelrt.errors import InputError
from pixelrt.serve import asking
from pixelrt.serve.document import document, query_of
from pixelrt.serve.worker import Worker

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
        fields = {
            "prompt": prompt, "task": task, "classes": classes, "things": things, "min_score": min_score,
            "several": several, "none_below": none_below, "points": points, "scribbles": scribbles, "boxes": boxes,
            "masks": masks,
        }  # fmt: skip
        try:
            query = query_of(fields)
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        answered = await asking.answer(
            worker, request, await image.read(), query, max_new_tokens=max_new_tokens
        )
        # Run lengths and PNGs take milliseconds each, in which others want to be heard.
        told: dict[str, Any] = await run_in_threadpool(
            document, answered, worker.settings.name, label_map, overlay
        )
        return told

    return segment
