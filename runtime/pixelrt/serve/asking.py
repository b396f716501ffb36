"""A request becomes a question, waits for its pieces, and leaves when its client does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from pixelrt import query_json
from pixelrt.errors import InputError
from pixelrt.image import announced_size
from pixelrt.queries import KINDS, Query
from pixelrt.serve.settings import Settings
from pixelrt.serve.worker import Answered, Closed, Piece, Question, QueueFull, Worker

PLACES_MAX = 10_000  # of all points and scribbles of a question
REGION_PIXELS_MAX = 1 << 29  # every region becomes a mask of the picture's size, a byte a pixel


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
    if isinstance(error, InputError):
        return HTTPException(400, str(error))
    return HTTPException(500, f"The model failed ({type(error).__name__}). The server's log has the details.")


def _checked(worker: Worker, picture: bytes, entry: Any, max_new_tokens: int) -> tuple[str | Query, int]:
    """The query and the tokens of its words, after all that can be refused before its turn.

    Raises InputError, HTTPException 413.
    """
    if not picture:
        raise InputError("the picture is empty. Send the bytes of a PNG, JPEG, WebP or TIFF.")
    height, width = announced_size(picture)
    limits = worker.settings
    if height * width > limits.pixels:
        worker.metrics.refused.labels("pixels").inc()
        raise HTTPException(
            413, f"the picture has {width} x {height} pixels; {limits.pixels:,} are allowed. Scale it down."
        )
    _check_amount(entry, height * width, limits)
    query = query_json.from_json(entry, (height, width))
    ids = worker.segmenter.check(query, None, max_new_tokens)
    return query, len(ids) - 1  # without the place of the picture


def _check_amount(entry: Any, pixels: int, limits: Settings) -> None:
    """Raises InputError where a question has more words, places or regions than are allowed."""
    given = entry if isinstance(entry, dict) else {}
    lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    length = sum(
        len(part) for key in ("prompt", "classes") for part in lists.get(key, []) if isinstance(part, str)
    )
    if length > limits.prompt_chars:
        raise InputError(
            f"the prompt has {length:,} characters; {limits.prompt_chars:,} are allowed. Say it in fewer words."
        )
    touched = [item for key in ("points", "scribbles") for item in lists.get(key, [])]
    if any(isinstance(item, dict) for item in touched):
        raise InputError("points and scribbles are lists of x, y here. Give a mask under masks.")
    places = sum(len(item) for item in touched if isinstance(item, list))
    if places > PLACES_MAX:
        raise InputError(f"{places:,} places are marked; {PLACES_MAX:,} are allowed. Mark fewer.")
    regions = sum(len(lists.get(kind, [])) for kind in KINDS)
    if regions * pixels > REGION_PIXELS_MAX:
        raise InputError(
            f"{regions} regions of a picture of {pixels:,} pixels are too many at once. Scale it down, or mark fewer."
        )


async def _left(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
