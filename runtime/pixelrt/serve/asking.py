"""A request becomes a question, waits for its pieces, and leaves when its client does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from pixelrt.errors import InputError
from pixelrt.queries import Query
from pixelrt.serve.answering import failure
from pixelrt.serve.limits import TooManyPixels, checked
from pixelrt.serve.worker import Answered, Closed, Piece, Question, QueueFull, Worker


async def pieces(
    worker: Worker,
    request: Request,
    picture: bytes,
    query: Any,
    max_new_tokens: int | None = None,
    stream: bool = False,
) -> AsyncGenerator[Any, None]:
    """Ask, and give words and masks as they come (where `stream`), then the `Answered`.

    query: as JSON. Raises HTTPException for what cannot be asked or answered; ends early where the client left.
    """
    settings = worker.settings
    tokens = min(max_new_tokens or settings.new_tokens, settings.new_tokens)
    try:
        # In another thread: a hostile header or a long prompt must not hold up the others.
        asked, text_tokens = await run_in_threadpool(_checked, worker, picture, query, tokens)
    except InputError as error:
        raise HTTPException(400, str(error)) from None
    loop = asyncio.get_running_loop()
    come: asyncio.Queue[Piece] = asyncio.Queue()

    def give(piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(come.put_nowait, piece)

    question = Question(picture, asked, give, text_tokens, tokens, stream=stream)
    submit(worker, question)
    left = asyncio.ensure_future(_left(request))
    try:
        while True:
            coming = asyncio.ensure_future(come.get())
            await asyncio.wait({coming, left}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return
            piece = coming.result()
            if isinstance(piece, Exception):
                raise http_error(piece)
            yield piece
            if isinstance(piece, Answered):
                return
    finally:
        question.abandoned = True
        left.cancel()


async def answer(worker: Worker, request: Request, picture: bytes, query: Any, **options: Any) -> Answered:
    """The answer alone; HTTPException 499 where the client has left, which nobody reads."""
    async with contextlib.aclosing(pieces(worker, request, picture, query, **options)) as come:
        async for piece in come:
            if isinstance(piece, Answered):
                return piece
    raise HTTPException(499, "The client has left.")


def submit(worker: Worker, question: Question, always: bool = False) -> None:
    """As `Worker.submit`. Raises HTTPException 429, 503."""
    try:
        worker.submit(question, always)
    except QueueFull as full:
        worker.metrics.refused.labels("queue").inc()
        raise HTTPException(429, str(full), {"Retry-After": str(full.retry_after_s)}) from None
    except Closed as closed:
        raise HTTPException(503, str(closed), {"Retry-After": "5"}) from None


def http_error(error: Exception) -> HTTPException:
    return HTTPException(400 if isinstance(error, InputError) else 500, failure(error))


def _checked(worker: Worker, picture: bytes, entry: Any, max_new_tokens: int) -> tuple[str | Query, int]:
    """See `pixelrt.serve.limits.checked`. Raises InputError, HTTPException 413."""
    try:
        return checked(worker.segmenter, picture, entry, worker.settings, max_new_tokens)
    except TooManyPixels as error:
        worker.metrics.refused.labels("pixels").inc()
        raise HTTPException(413, str(error)) from None


async def _left(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
