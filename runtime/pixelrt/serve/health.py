"""/healthz: the process lives. /readyz: a picture goes in and an answer comes out, now or a moment ago."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import numpy as np
from fastapi import HTTPException
from PIL import Image

from pixelrt.serve import asking
from pixelrt.serve.worker import Answered, Piece, Question, Worker

RECENT_S = 10.0  # an answer this young shows that the model runs: a crowd of probes costs one inference
PROMPT = "Segment the red circle."


def probe() -> bytes:
    """A picture for a real inference: a red disc on grey."""
    y, x = np.mgrid[:64, :64]
    picture = np.full((64, 64, 3), 160, np.uint8)
    picture[(y - 32) ** 2 + (x - 32) ** 2 < 200] = (200, 30, 30)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class Health:
    def __init__(self, worker: Worker) -> None:
        self.worker, self.draining = worker, False
        self._picture = probe()
        self._asking: asyncio.Future[Any] | None = None  # one probe for all who ask meanwhile

    def routes(self) -> dict[str, Any]:
        async def healthz() -> dict[str, str]:
            """The process lives and answers."""
            return {"status": "alive"}

        async def readyz() -> dict[str, str]:
            """A real inference ran within the last seconds, or runs now. 503 where it fails, and while draining."""
            if self.draining:
                raise HTTPException(503, "The server is shutting down. Ask another one.")
            if time.monotonic() - self.worker.succeeded > RECENT_S:
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.ensure_future(self.infer())
                try:
                    await asyncio.shield(self._asking)
                except HTTPException as error:
                    raise HTTPException(503, str(error.detail)) from None
            return {"status": "ready"}

        return {"/healthz": healthz, "/readyz": readyz}

    async def infer(self) -> None:
        """One inference, in its turn but never refused for want of room. Raises HTTPException where it fails."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Piece] = loop.create_future()
        question = Question(self._picture, PROMPT, lambda piece: _later(loop, done, piece), max_new_tokens=8)
        asking.submit(self.worker, question, always=True)
        piece = await done
        if not isinstance(piece, Answered):
            raise (
                asking.http_error(piece) if isinstance(piece, Exception) else HTTPException(503, "No answer.")
            )


def _later(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Piece], piece: Piece) -> None:
    def settle() -> None:
        if not done.done():
            done.set_result(piece)

    loop.call_soon_threadsafe(settle)
