"""Requests that are refused, each with a sentence."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.image import PIXEL_LIMIT, announced_size, open_image

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")


from tests.runtime.served import RED, Model, ask, chat, error_of, form, service, talk  # noqa: E402

OVERLAY = (Path(__file__).parents[2] / "docs" / "overlay.png").read_bytes()


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
