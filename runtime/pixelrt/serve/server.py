"""Bind, listen, answer until SIGTERM or Ctrl-C, finish what was begun, leave."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from pixelrt.errors import InputError
from pixelrt.segmenter import Segmenter
from pixelrt.serve.app import Service
from pixelrt.serve.connection import protocol
from pixelrt.serve.settings import Settings


def bind(settings: Settings) -> socket.socket:
    """A socket that listens. Raises InputError where the address cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(settings.connections)
        return listening
    except OSError as error:
        raise InputError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port."
        ) from None


def url(settings: Settings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


class Server(uvicorn.Server):
    """Says that it is not ready from the moment it is told to stop."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.service = service
        super().__init__(
            uvicorn.Config(
                service.app,
                http=protocol(settings.patience_s, settings.connections),
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            )
        )

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.health.draining = True
        super().handle_exit(sig, frame)


def serve(
    segmenter: Segmenter, settings: Settings, listening: socket.socket, say: Callable[[str], None]
) -> None:
    """Until told to stop. Requests that were taken before are answered, within `drain_s`."""
    service = Service(segmenter, settings)
    server = Server(service)
    service.worker.start()
    # uvicorn raises the signals again that it caught, once it is done: the program then ends as it would have.
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, earlier)
        service.worker.close()
        say("stopped: every request that was taken is answered")
