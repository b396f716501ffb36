"""The server over real sockets: clients that are slow, large or too many; draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from pixelrt.serve.server import Server, bind  # noqa: E402
from pixelrt.serve.settings import Settings  # noqa: E402

from tests.runtime.served import RED, Model, chat, error_of, form, metric, service, until  # noqa: E402

PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@contextlib.contextmanager
def listening(model: Model, **settings: Any) -> Iterator[tuple[Server, int, threading.Thread]]:
    with service(model, **settings) as served, bind(Settings("stub", port=0)) as opened:
        server = Server(served)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        try:
            yield server, opened.getsockname()[1], thread
        finally:
            model.go.set()
            server.handle_exit(signal.SIGTERM, None)
            thread.join(30)


def raw(port: int, data: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                got += part
    return got


def test_slow_clients_are_let_go() -> None:
    head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    with listening(Model(), patience_s=0.2) as (server, port, _):
        assert raw(port, b"GET / HT") == b""
        assert raw(port, b"") == b""
        late = raw(
            port,
            head.replace(b"text/plain", b"multipart/form-data; boundary=x")
            + b"Content-Length: 100\r\n\r\n--x",
        )
        assert late.startswith(b"HTTP/1.1 408") and b"was not here after 0.2 s" in late
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        assert not server.service.worker.segmenter.asked


def test_one_that_takes_no_answer_is_let_go() -> None:
    model = Model()
    model.text = "x" * 30_000_000  # more than the buffers of both ends
    with listening(model, patience_s=0.2) as (server, port, _):
        body = json.dumps(chat()).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                           b"\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
            asyncio.run(
                asyncio.wait_for(until(lambda: model.asked and not server.server_state.connections), 60)
            )


def test_too_large_a_body_still_gets_its_answer() -> None:
    """Announced or not; the connection is not reset over what was sent."""
    with listening(Model(), body_bytes=100_000) as (_, port, _):
        url = f"http://127.0.0.1:{port}/v1/segment"
        announced = httpx.post(url, **form(RED * 3000))
        chunked = httpx.post(
            url,
            content=iter([PART, *[b"x" * 50_000] * 10]),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    for answer in (announced, chunked):
        assert answer.status_code == 413 and "are allowed" in error_of(answer)


def test_one_connection_too_many() -> None:
    with listening(Model(), connections=2) as (_, port, _), contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert raw(port, b"").startswith(b"HTTP/1.1 503")


def test_what_was_taken_is_answered_before_the_end() -> None:
    model = Model()
    model.go.clear()
    with listening(model) as (server, port, thread):
        answers: list[Any] = []
        url = f"http://127.0.0.1:{port}/v1/segment"
        asking = [
            threading.Thread(target=lambda: answers.append(httpx.post(url, timeout=60, **form())))
            for _ in range(3)
        ]
        for each in asking:
            each.start()
        worker = server.service.worker

        async def full_then_told() -> None:
            await until(lambda: model.busy.is_set() and taken(worker) == 3)
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: refused(port))

        asyncio.run(asyncio.wait_for(full_then_told(), 60))
        assert server.service.health.draining and not answers
        model.go.set()
        for each in (*asking, thread):
            each.join(60)
        assert [answer.status_code for answer in answers] == [200] * 3 and not thread.is_alive()


def taken(worker: Any) -> float:
    """Questions that wait or are being answered."""
    text = worker.metrics.text().decode()
    return metric(text, "pixelrt_waiting") + metric(text, "pixelrt_answering")


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
