"""POST /v1/chat/completions: OpenAI's shape, with `masks` beside the words.

The last message of the user is the question; the picture is the last one sent, as a data: URL. No URL is fetched.
Each question stands for itself: messages before it are not read, and sampling options have no effect, for the
answer is the most probable one. A query that is no words goes into `query` (see pixelrt.query_json).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pixelrt.masks import Answer, Mask
from pixelrt.serve import asking
from pixelrt.serve.errors import error_body
from pixelrt.serve.worker import Answered, Worker


class ImageUrl(BaseModel):
    url: str = Field(description="data:image/png;base64,…; no other URL is taken")


class Part(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What is not named here is ignored."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    model: str | None = None
    query: dict[str, Any] | None = Field(None, description="a query of pixelrt.query_json, in place of words")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None


def route(worker: Worker) -> Any:
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Ask about a picture as in a chat; `stream` gives words and masks as they come."""
        name = worker.settings.name
        if body.model not in (None, name):
            raise HTTPException(404, f"The model {body.model!r:.60} is not served here. Ask {name!r}.")
        words, picture = await run_in_threadpool(question_of, body.messages)
        query = {**({"prompt": words} if words else {}), **(body.query or {})}
        tokens = body.max_completion_tokens or body.max_tokens
        reply = _Reply(name)
        if not body.stream:
            answered = await asking.answer(worker, request, picture, query, max_new_tokens=tokens)
            return JSONResponse(await run_in_threadpool(reply.whole, answered))
        pieces = asking.pieces(worker, request, picture, query, tokens, stream=True)
        # An error before the first piece is still an answer with a status of its own.
        first = await anext(pieces, None)
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(reply, first, pieces, usage)
        return StreamingResponse(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return chat_completions


def question_of(messages: list[Message]) -> tuple[str, bytes]:
    """The words of the last message and the picture last sent. Raises HTTPException where there is none."""
    asked = messages[-1]
    if asked.role != "user":
        raise HTTPException(400, f"The last message is of role {asked.role!r:.40}. End with one of the user.")
    words = " ".join(_texts(asked)).strip()
    for message in reversed(messages):
        urls = _urls(message)
        if len(urls) > 1:
            raise HTTPException(400, f"A message has {len(urls)} pictures. Ask about one at a time.")
        if urls:
            return words, picture_of(urls[0])
    example = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
    raise HTTPException(400, f"The messages hold no picture. Add a part: {example}")


def picture_of(url: str) -> bytes:
    """The bytes in a data: URL. Any other is refused: nothing is ever fetched."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        raise HTTPException(
            400,
            f"The image_url begins with {url[:24]!r}; no URL is fetched here. "
            "Send the picture itself: data:image/png;base64,…",
        )
    kind, comma, data = rest.partition(",")
    try:
        if not comma or not kind.lower().endswith(";base64"):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except ValueError:  # binascii.Error is one
        raise HTTPException(
            400, "The data: URL is not in base64. Send data:image/png;base64, and the file's bytes so."
        ) from None


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, list):
        return [part.text for part in message.content if part.type == "text" and part.text]
    return [message.content] if message.content else []


def _urls(message: Message) -> list[str]:
    parts = message.content if isinstance(message.content, list) else []
    return [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]


class _Reply:
    """The documents of one answer."""

    def __init__(self, model: str) -> None:
        self._about = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answered: Answered) -> dict[str, Any]:
        told = answered.result.to_json()
        message = {"role": "assistant", "content": answered.result.text, "masks": told["masks"]}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answered)}
        return {
            **self._about,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answered),
            "pixelrt": _told(answered),
        }

    def chunk(self, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
        return self.event({"choices": [choice], **more})

    def event(self, document: dict[str, Any]) -> bytes:
        return _event({**self._about, "object": "chat.completion.chunk", **document})


async def _events(
    reply: _Reply, first: Any, rest: AsyncGenerator[Any, None], usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: words, masks (numbered from 0), the reason of the end, [DONE]."""
    yield reply.chunk({"role": "assistant", "content": ""})
    number = 0
    async with aclosing(rest):
        piece = first
        try:
            while piece is not None:
                if isinstance(piece, str):
                    yield reply.chunk({"content": piece})
                elif isinstance(piece, Mask):
                    yield reply.chunk(
                        {"masks": [{"index": number, **await run_in_threadpool(piece.to_json)}]}
                    )
                    number += 1
                elif isinstance(piece, Answered):
                    yield reply.chunk({}, finish_reason=_reason(piece), pixelrt=_told(piece))
                    if usage:
                        yield reply.event({"choices": [], "usage": _usage(piece)})
                piece = await anext(rest, None)
        except HTTPException as error:
            yield _event(error_body(error.status_code, str(error.detail)))
    yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def _reason(answered: Answered) -> str:
    result = answered.result
    return "length" if isinstance(result, Answer) and not result.finished else "stop"


def _usage(answered: Answered) -> dict[str, int]:
    written = len(getattr(answered.result, "token_ids", ()))
    asked = answered.prompt_tokens
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}


def _told(answered: Answered) -> dict[str, Any]:
    """What OpenAI's shape has no place for."""
    timing = {stage: round(float(spent), 3) for stage, spent in answered.timing_ms.items()}
    size = list(answered.frame.image.shape[:2])
    return {"image": {"size": size, "reused": answered.reused}, "timing_ms": timing}
