"""Who may come in, and with how much: checked before a body is read. ASGI, around the whole app.

No token set: only this machine can ask, and a web page from elsewhere, which runs on this machine too, is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from pixelrt.serve.errors import error_response
from pixelrt.serve.metrics import Metrics
from pixelrt.serve.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/", "/healthz", "/readyz")  # need no token: the page asks for it, and probes have none
PATHS = (*OPEN, "/metrics", "/v1/models", "/v1/segment", "/v1/chat/completions", "/openapi.json")
LINGER_S = 2.0  # how long the rest of a refused request is read, so that its client sees the answer


class Guard:
    def __init__(self, app: Any, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        start, code = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            body = _Body(receive, self, headers)
            refused = self._refusal(scope, headers)
            app = self.app if refused is None else error_response(refused)
            await app(scope, body.receive, body.sender(counted))
        finally:
            self.metrics.requests.labels(path, str(code)).inc()
            self.metrics.request_s.labels(path).observe(time.perf_counter() - start)

    def _refusal(self, scope: Message, headers: dict[str, str]) -> HTTPException | None:
        settings = self.settings
        if settings.token is None:
            if settings.local and _foreign(headers):
                return self.refuse(
                    403,
                    "origin",
                    "This server answers this machine alone. Start it with a --token for others.",
                )
        elif scope["path"] not in OPEN and not hmac.compare_digest(
            headers.get("authorization", "").encode(), f"Bearer {settings.token}".encode()
        ):
            refused = self.refuse(
                401, "token", "The token is missing or wrong. Send it as Authorization: Bearer TOKEN."
            )
            refused.headers = {"WWW-Authenticate": "Bearer"}
            return refused
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > settings.body_bytes:
            return self.refuse(413, "body", _too_large(settings, f"has {int(length):,} bytes"))
        return None

    def refuse(self, status: int, reason: str, sentence: str) -> HTTPException:
        self.metrics.refused.labels(reason).inc()
        return HTTPException(status, sentence)


class _Body:
    """A request's body: refused where it is too large or too slow; and what comes after an early answer."""

    def __init__(self, receive: Receive, guard: Guard, headers: dict[str, str]) -> None:
        self._receive, self._guard = receive, guard
        self._until = time.monotonic() + guard.settings.patience_s
        self._size = 0
        self._whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Raises HTTPException, of which the app makes the answer."""
        settings = self._guard.settings
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except asyncio.TimeoutError:
            late = f"The request was not here after {settings.patience_s:g} s. Send it faster."
            raise self._guard.refuse(408, "slow", late) from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > settings.body_bytes:
            raise self._guard.refuse(413, "body", _too_large(settings, "is too large"))
        return message

    def sender(self, send: Send) -> Send:
        """`send` that reads on for a while before it ends an early answer: a connection that is closed over unread
        bytes loses it."""

        async def sent(message: Message) -> None:
            if self._whole:
                await send(message)
            elif message["type"] == "http.response.start":
                await send({**message, "headers": [*message["headers"], (b"connection", b"close")]})
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drained(), LINGER_S)
                await send({"type": "http.response.body", "body": b""})

        return sent

    async def _drained(self) -> None:
        while (await self._receive()).get("more_body", False):
            pass


def _too_large(settings: Settings, what: str) -> str:
    return f"The request {what}; {settings.body_bytes:,} are allowed. Send a smaller picture."


def _foreign(headers: dict[str, str]) -> bool:
    """Whether a web page of another site asks, or one that had its own name lead here."""
    host = urlsplit("//" + headers.get("host", "")).hostname or ""
    origin = headers.get("origin")
    other = origin is not None and urlsplit(origin).netloc != headers.get("host")
    return other or host not in ("localhost", "127.0.0.1", "::1")
