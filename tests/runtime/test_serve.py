"""The server around a model that waits for the test: queue, limits, doors, draining. Nothing sleeps to be in time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pixelrt.cli import main
from pixelrt.errors import InputError
from pixelrt.image import PIXEL_LIMIT, announced_size, open_image
from pixelrt.palette import colours

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from pixelrt.serve.server import Server, bind  # noqa: E402
from pixelrt.serve.settings import Settings  # noqa: E402

from tests.runtime.served import Model, ask, metric, png, service, talk, until  # noqa: E402

RED = png(200)
OVERLAY = (Path(__file__).parents[2] / "docs" / "overlay.png").read_bytes()


def error_of(response: Any) -> str:
    """The sentence of an error, whose shape is OpenAI's."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == response.status_code
    sentence = str(error["message"])
    assert (
        sentence.endswith((".", "jpg", "'", "}", "…"))
        and "\n" not in sentence
        and "Traceback" not in sentence
    )
    return sentence


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that announces side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def form(image: Any = RED, **fields: str) -> dict[str, Any]:
    files = {} if image is None else {"image": image}
    return {"files": files, "data": fields or {"prompt": "the mug"}}


def test_one_picture_many_questions() -> None:
    model = Model()
    with service(model) as served:

        async def script(client: Any) -> Any:
            answers = [await ask(client, f"question {i}", shade=i % 2) for i in range(4)]
            return [answer.json() for answer in answers], (await client.get("/metrics")).text

        answers, metrics = talk(served, script)
    assert [answer["text"] for answer in answers] == [f"question {i}" for i in range(4)]
    assert [answer["image"] for answer in answers] == [
        {"size": [6, 8], "reused": reused} for reused in (False, False, True, True)
    ]
    assert model.encoded == [0, 1]
    assert (
        metric(metrics, "pixelrt_encoder_runs_total") == 2
        and metric(metrics, "pixelrt_frame_hits_total") == 2
    )
    assert metric(metrics, "pixelrt_frames") == 2 and metric(metrics, "pixelrt_masks_total") == 4
    assert metric(metrics, 'pixelrt_requests_total{code="200",path="/v1/segment"}') == 4


def test_frames_make_room() -> None:
    """Each frame is 6 * 8 * 3 bytes of picture and 32 of tokens: two fit."""
    model = Model()
    with service(model, frames_bytes=2 * 176) as served:

        async def script(client: Any) -> Any:
            for shade in (1, 2, 1, 3, 1, 2):  # 2 is the one unused for longest when 3 comes
                await ask(client, shade=shade)
            return (await client.get("/metrics")).text

        metrics = talk(served, script)
    assert model.encoded == [1, 2, 3, 2]
    assert metric(metrics, "pixelrt_frame_bytes") == 2 * 176
    with service(model := Model(), frames_bytes=0) as served:

        async def again(client: Any) -> None:
            for _ in range(2):
                await ask(client)

        talk(served, again)
    assert model.encoded == [0, 0]


def test_what_waits_is_gathered_by_picture() -> None:
    """One encoder run for both questions about a picture, although another's stands between, and no frame is kept."""
    model = Model()
    model.go.clear()
    with service(model, frames_bytes=0) as served:

        async def script(client: Any) -> Any:
            first = asyncio.ensure_future(ask(client, "first", 1))
            await until(model.busy.is_set)
            later = []
            for prompt, shade in (("a", 2), ("b", 3), ("c", 2)):
                later.append(asyncio.ensure_future(ask(client, prompt, shade)))
                await until(lambda: len(served.worker._waiting) == len(later))
            model.go.set()
            return [(await each).json() for each in (first, *later)]

        answers = talk(served, script)
    assert model.encoded == [1, 2, 3] and model.asked == ["first", "a", "c", "b"]
    assert [answer["image"]["reused"] for answer in answers] == [False, False, False, True]


def test_a_full_queue_answers_429() -> None:
    model = Model()
    model.go.clear()
    with service(model, waiting=2) as served:

        async def script(client: Any) -> Any:
            first = asyncio.ensure_future(ask(client, "first"))
            await until(model.busy.is_set)
            waiting = [asyncio.ensure_future(ask(client, f"{i}")) for i in range(2)]
            await until(lambda: len(served.worker._waiting) == 2)
            refused = await ask(client, "one too many")
            streamed = await client.post("/v1/chat/completions", json=chat("one too many", stream=True))
            model.go.set()
            return refused, streamed, [(await each).status_code for each in (first, *waiting)]

        refused, streamed, codes = talk(served, script)
    for response in (refused, streamed):
        assert response.status_code == 429 and 1 <= int(response.headers["retry-after"]) <= 60
        assert error_of(response).startswith("2 requests are waiting already.")
    assert codes == [200, 200, 200] and "one too many" not in model.asked


def test_a_client_that_leaves_is_not_answered() -> None:
    model = Model()
    model.go.clear()
    with service(model) as served:

        async def script(client: Any) -> None:
            first = asyncio.ensure_future(ask(client, "first"))
            await until(model.busy.is_set)
            second = asyncio.ensure_future(ask(client, "second"))
            await until(lambda: len(served.worker._waiting) == 1)
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
            model.go.set()
            assert (await first).status_code == 200

        talk(served, script)
    assert model.asked == ["first"]


HOSTILE = [
    (form(None), 400, "The request has no image."),
    (form(b""), 400, "the picture is empty"),
    (form(b"hello"), 400, "is not a picture that can be read"),
    (form(b"%PDF-1.7 ..."), 400, "is not a picture that can be read"),
    (form(RED[:40]), 400, "picture"),
    (form(OVERLAY[:5000]), 400, "is a damaged or truncated picture"),
    (form(bomb(60000)), 400, "pixels allowed"),
    (form(bomb(5000)), 413, "has 5000 x 5000 pixels; 16,777,216 are allowed"),
    (form(bomb(4000)), 400, "is a damaged or truncated picture"),
    (form(RED * 20000), 413, "are allowed. Send a smaller picture."),
    ({"data": {"image": "hello", "prompt": "x"}}, 400, "image is no file"),
    (form(prompt="x" * 4001), 400, "the prompt has 4,001 characters; 4,000 are allowed"),
    (form(task="riddle"), 400, "the task is 'riddle'"),
    (form(task="interactive", points="[[1,"), 400, "points is '[[1,', which is not JSON"),
    (form(task="interactive", points="[" * 50000), 400, "which is not JSON"),
    (form(task="interactive", points='[["a", "b"]]'), 400, "one of the points is"),
    (form(task="interactive", points="[[1e400, 1]]"), 400, "one of the points is"),
    (form(task="interactive", points=json.dumps([[[1, 1]] * 20000])), 400, "20,000 places are marked"),
    (form(task="interactive", masks='[{"size": [99999, 99999], "counts": "0"}]'), 400, "a region has size"),
    (form(task="interactive", masks='[{"size": [6, 8], "counts": "!!"}]'), 400, "RLE counts"),
    (form(task="interactive", points='[{"size": [6, 8], "counts": "0"}]'), 400, "Give a mask under masks"),
    (form(task="panoptic", classes='["a", "a"]'), 400, "more than once"),
    (form(prompt="x", several="true"), 400, "it needs a task"),
    (form(prompt="x", max_new_tokens="-5"), 400, "max_new_tokens: "),
    (form(prompt="x", overlay="perhaps"), 400, "overlay: "),
    ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, ""),
    ({"content": b"--x\r\nrubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, ""),
    ({"json": [1]}, 400, "The request has no image."),
]  # fmt: skip


def test_hostile_forms() -> None:
    model = Model()
    with service(model, body_bytes=1 << 20) as served:

        async def script(client: Any) -> Any:
            codes = [await client.post("/v1/segment", **request) for request, _, _ in HOSTILE]
            return codes, await ask(client)

        answers, after = talk(served, script)
    for (_, code, sentence), answer in zip(HOSTILE, answers, strict=True):
        assert answer.status_code == code, (sentence, answer.text)
        assert sentence in error_of(answer)
    assert after.status_code == 200


def chat(prompt: Any = "the mug", url: str | None = None, **more: Any) -> dict[str, Any]:
    url = url or "data:image/png;base64," + base64.b64encode(RED).decode()
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], **more}


CHATS = [
    (chat(url="http://169.254.169.254/latest"), 400, "no URL is fetched here"),
    (chat(url="https://example.org/a.png"), 400, "no URL is fetched here"),
    (chat(url="file:///etc/passwd"), 400, "no URL is fetched here"),
    (chat(url="/etc/passwd"), 400, "no URL is fetched here"),
    (chat(url="data:image/png;base64,***"), 400, "not in base64"),
    (chat(url="data:image/png,abc"), 400, "not in base64"),
    (chat(url="data:image/png;base64,aGVsbG8="), 400, "is not a picture"),
    (chat(model="gpt-9"), 404, "The model 'gpt-9' is not served here. Ask 'stub'."),
    (chat(n=2), 400, "n: "),
    (chat(stream="x"), 400, "stream: "),
    (chat(query={"task": "riddle"}), 400, "the task is 'riddle'"),
    (chat(query=[1]), 400, "query: "),
    ({"messages": []}, 400, "messages: "),
    ({"messages": [{"role": "user", "content": "hello"}]}, 400, "The messages hold no picture."),
    ({"messages": [{"role": "assistant", "content": "hello"}]}, 400, "End with one of the user."),
    ({"messages": [chat()["messages"][0], {"role": "user", "content": chat()["messages"][0]["content"] * 2}]}, 400,
     "A message has 2 pictures."),
]  # fmt: skip


def test_hostile_chats() -> None:
    with service() as served:

        async def script(client: Any) -> Any:
            path = "/v1/chat/completions"
            whole = [await client.post(path, json=body) for body, _, _ in CHATS]
            bare = [await client.post(path, content=text, headers={"content-type": "application/json"})
                    for text in (b"{", b"", b"[" * 100_000, b"\xff\xfe")]  # fmt: skip
            return whole, [*bare, await client.post(path, content=b"{}")]

        answers, bare = talk(served, script)
    for (_, code, sentence), answer in zip(CHATS, answers, strict=True):
        assert answer.status_code == code and sentence in error_of(answer), (sentence, answer.text)
    for answer in bare:
        assert answer.status_code == 400 and error_of(answer)


def test_a_chat_has_openais_shape() -> None:
    before = chat()["messages"][0]
    body = {
        "messages": [
            before,
            {"role": "assistant", "content": "A mug."},
            {"role": "user", "content": "the spoon"},
        ]
    }
    with service() as served:

        async def script(client: Any) -> Any:
            return (await client.post("/v1/chat/completions", json=body | {"temperature": 0.3})).json()

        answer = talk(served, script)
    choice = answer["choices"][0]
    assert (
        answer["object"] == "chat.completion"
        and answer["model"] == "stub"
        and answer["id"].startswith("chatcmpl-")
    )
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == "the spoon"
    assert choice["finish_reason"] == "stop" and choice["message"]["masks"][0]["label"] == "the spoon"
    assert answer["usage"] == {"prompt_tokens": 2 + 4, "completion_tokens": 2, "total_tokens": 8}


def test_a_stream_gives_words_then_masks() -> None:
    with service() as served:

        async def script(client: Any) -> Any:
            body = chat(stream=True, stream_options={"include_usage": True})
            good = await client.post("/v1/chat/completions", json=body)
            return good, await client.post("/v1/chat/completions", json=chat("fail", stream=True))

        good, failed = talk(served, script)
    assert good.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in good.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    assert len({event["id"] for event in events}) == 1
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[1] == {"content": "the mug"}
    assert deltas[2]["masks"][0]["index"] == 0 and deltas[2]["masks"][0]["label"] == "the mug"
    assert events[-2]["choices"][0]["finish_reason"] == "stop" and events[-2]["pixelrt"]["image"]["size"] == [
        6,
        8,
    ]
    assert events[-1]["usage"]["total_tokens"] == 8
    assert failed.status_code == 500 and "secret" not in failed.text


def test_a_failure_is_no_secret_and_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as served:

        async def script(client: Any) -> Any:
            ready = await client.get("/readyz")
            failed = await ask(client, "fail")
            return ready, failed, (await ask(client)), (await client.get("/metrics")).text

        ready, failed, good, metrics = talk(served, script)
    assert ready.status_code == 200 and good.status_code == 200
    assert failed.status_code == 500 and "RuntimeError" in error_of(failed) and "secret" not in failed.text
    assert "a secret of the machine" in capsys.readouterr().err
    assert metric(metrics, "pixelrt_failures_total") == 1


def test_ready_is_a_real_inference() -> None:
    model = Model()
    with service(model) as served:

        async def script(client: Any) -> Any:
            codes = [(await client.get("/healthz")).status_code]
            assert not model.asked
            for _ in range(3):
                codes.append((await client.get("/readyz")).status_code)
            asked = len(model.asked)
            broken, model.segment = model.segment, None  # type: ignore[method-assign, assignment]
            await ask(client)
            codes.append((await client.get("/readyz")).status_code)
            model.segment = broken  # type: ignore[method-assign]
            codes.append((await client.get("/readyz")).status_code)
            served.health.draining = True
            codes += [(await client.get("/readyz")).status_code, (await client.get("/healthz")).status_code]
            return codes, asked

        codes, asked = talk(served, script)
    assert codes == [200, 200, 200, 200, 503, 200, 503, 200]
    assert asked == 1  # the answer of a moment ago is shown to all


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "secret-token", "Basic secret-token"])
def test_a_wrong_token(given: str | None) -> None:
    with service(token="secret-token", host="0.0.0.0") as served:

        async def script(client: Any) -> Any:
            headers = {} if given is None else {"Authorization": given}
            paths = ("/v1/models", "/metrics", "/openapi.json", "/nothing")
            closed = [await client.get(path, headers=headers) for path in paths]
            closed.append(await client.post("/v1/segment", headers=headers, **form()))
            opened = [await client.get(path) for path in ("/", "/healthz", "/readyz")]
            right = await client.get("/v1/models", headers={"Authorization": "Bearer secret-token"})
            return closed, [*opened, right]

        closed, opened = talk(served, script, base_url="http://gpu-box:8000")
    for answer in closed:
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "token is missing or wrong" in error_of(answer)
    assert all(answer.status_code == 200 for answer in opened)


def test_another_sites_page_is_refused() -> None:
    """A page that the user of this machine looks at must not ask in their name, nor under a name that leads here."""
    with service() as served:

        async def script(client: Any) -> Any:
            origins = [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}]
            closed = [await client.post("/v1/segment", headers=headers, **form()) for headers in origins]
            own = [{"Origin": "http://localhost"}, {"Host": "127.0.0.1:8000"}, {"Host": "[::1]:8000"}, {}]
            return closed, [await client.post("/v1/segment", headers=headers, **form()) for headers in own]

        closed, opened = talk(served, script)
    assert [answer.status_code for answer in closed] == [403] * 3 and error_of(closed[0])
    assert [answer.status_code for answer in opened] == [200] * 4


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box"])
def test_no_token_for_others(host: str) -> None:
    with pytest.raises(InputError, match="can be reached from other machines, and no token is set"):
        Settings("m", host=host)
    assert not Settings("m", host=host, token="long-enough").local
    assert Settings("m", host=host, allow_anyone=True)
    done = CliRunner().invoke(main, ["serve", "nowhere", "--host", host])
    assert done.exit_code == 2 and "no token is set" in done.output


def test_settings_are_checked() -> None:
    for local in ("localhost", "127.0.0.1", "127.9.9.9", "::1"):
        assert Settings("m", host=local).local
    for token in ("short", "has a blank in it", "ünïcödé-token"):
        with pytest.raises(InputError, match="the token is shorter"):
            Settings("m", token=token)


def test_the_port_is_taken() -> None:
    with (
        bind(Settings("m", port=0)) as taken,
        pytest.raises(InputError, match="Choose another --host or --port"),
    ):
        bind(Settings("m", port=taken.getsockname()[1]))


def test_the_extra_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('fastapi', 'uvicorn', 'prometheus_client'): sys.modules[name] = None\n"
        "from pixelrt.cli import main\nmain(['serve', 'nowhere'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'pixelrt[serve]'" in done.stderr, done.stderr


# ---- over real sockets


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


# ---- the page


def test_the_page_runs_its_own_script_alone() -> None:
    with service() as served:

        async def script(client: Any) -> Any:
            return await client.get("/")

        answer = talk(served, script)
    text, policy = answer.text, answer.headers["content-security-policy"]
    assert policy.count("'sha256-") == 2 and "unsafe" not in policy and "default-src 'none'" in policy
    assert (
        "style=" not in text
        and "http://" not in text.replace("http://www.w3.org", "")
        and "https://" not in text
    )
    assert 'COLOURS = "' + " ".join(f"{r:02x}{g:02x}{b:02x}" for r, g, b in colours(24)) + '"' in text


# ---- pictures by their header


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_announced_size_is_that_of_the_upright_picture(kind: str, tag: int) -> None:
    from PIL import Image

    picture = Image.new("RGB", (9, 5))
    exif = Image.Exif()
    exif[0x0112] = tag
    file = io.BytesIO()
    picture.save(file, kind, exif=exif)
    assert announced_size(file.getvalue()) == open_image(file.getvalue()).shape[:2]


def test_a_header_alone_is_read() -> None:
    assert announced_size(bomb(4000)) == (4000, 4000)
    with pytest.raises(InputError, match=f"{PIXEL_LIMIT:,} allowed"):
        announced_size(bomb(9000))
    with pytest.raises(InputError, match="is not a picture"):
        announced_size(b"hello")


def test_run_lengths_that_overflow_are_refused() -> None:
    """64 runs of 2**58 pixels sum to 0 in 64 bits."""
    from pixelrt.rle import _to_ascii, decode

    runs = np.array([1 << 58] * 64, np.int64)
    told = runs.copy()
    told[3:] -= runs[1:-2]  # from the third on as differences
    counts = _to_ascii(told)
    with pytest.raises(InputError, match="the RLE counts cover"):
        decode({"size": [0, 8], "counts": counts})
