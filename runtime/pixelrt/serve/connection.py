"""One TCP connection, with the patience that uvicorn lacks: a client that is slow to send its headers, or to take
its answer, is let go, and so is one too many."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

FULL = b'{"error": {"message": "Too many connections are open. Ask again soon.", "type": "server_error", "code": 503}}'


def protocol(patience_s: float, connections: int) -> type[Any]:
    """The class that uvicorn makes one of for every connection."""

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            self._timers: dict[str, asyncio.TimerHandle] = {}
            super().connection_made(transport)
            if len(self.connections) > connections:
                head = (
                    f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: {len(FULL)}\r\n"
                )
                transport.write(
                    f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + FULL
                )
                transport.close()
            self._allow("headers", patience_s)

        def handle_events(self) -> None:
            super().handle_events()
            # A request has begun when there is a cycle that is not over; guard.py times its body.
            if self.cycle is not None and not self.cycle.response_complete:
                self._allow("headers", None)

        def on_response_complete(self) -> None:
            # For the next request's headers, and for the last bytes to be taken. Before the next one is looked at.
            self._allow("headers", patience_s)
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._allow("answer", patience_s)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._allow("answer", None)

        def connection_lost(self, exc: Exception | None) -> None:
            for what in ("headers", "answer"):
                self._allow(what, None)
            super().connection_lost(exc)

        def _allow(self, what: str, seconds: float | None) -> None:
            """Abort the connection after so many seconds, unless this is called again for `what` before."""
            if what in self._timers:
                self._timers.pop(what).cancel()
            if seconds is not None:
                self._timers[what] = self.loop.call_later(seconds, self.transport.abort)

    return Connection
