"""A service over a model that does what a test tells it, and ways to ask it."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image
from pixelrt.errors import InputError
from pixelrt.image import open_image
from pixelrt.masks import Answer, Mask
from pixelrt.segmenter import Frame
from pixelrt.serve.app import Service
from pixelrt.serve.settings import Settings

T = TypeVar("T")


def png(shade: int = 0, size: tuple[int, int] = (6, 8)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


RED = png(200)


class Model:
    """Answers `prompt` with itself and a mask of the left column. Blocks in `segment` while `go` is not set."""

    backend = "stub"

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(manifest={"family": "stub"}, sha256="0" * 64)
        self.go, self.busy = threading.Event(), threading.Event()
        self.go.set()
        self.encoded: list[int] = []  # the shade of each picture
        self.asked: list[str] = []
        self.text = ""  # answered in place of the prompt

    def check(
        self, prompt: Any, image: Any = None, max_new_tokens: int = 512, seg_runs: str = ""
    ) -> list[int]:
        if not isinstance(prompt, str):
            raise InputError("this model takes words.")
        return [1, -200, 2]

    def encode(self, image: Any) -> Frame:
        rgb = open_image(image)
        self.encoded.append(int(rgb[0, 0, 0]))
        tokens = np.zeros((4, 2), np.float32)
        return Frame(rgb, (6, 8), tokens, np.ones(4, bool), {}, self.bundle.sha256, {"encode": 1.0})

    def segment(self, frame: Frame, prompt: str, max_new_tokens: int = 512, seg_runs: str = "") -> Answer:
        self.busy.set()
        assert self.go.wait(60)
        self.asked.append(prompt)
        if prompt == "fail":
            raise RuntimeError("a secret of the machine")
        left = np.zeros(frame.image.shape[:2], bool)
        left[:, 0] = True
        mask = Mask(left, 0.5, prompt, None, (0, 0, 1, left.shape[0]), np.zeros((1, 1), np.float32))
        return Answer(self.text or prompt, [1, 2], [mask], {"language": 2.0})


@contextmanager
def service(model: Any = None, **settings: Any) -> Iterator[Service]:
    made = Service(model or Model(), Settings("stub", **{"wait_ms": 0.0, **settings}))
    made.worker.start()
    try:
        yield made
    finally:
        made.worker.segmenter.go.set() if isinstance(model, Model) else None
        made.worker.close()


def talk(served: Service, script: Callable[[httpx.AsyncClient], Awaitable[T]], **client: Any) -> T:
    """Run `script` with a client that reaches the app without a socket."""

    async def main() -> T:
        transport = httpx.ASGITransport(app=served.app, raise_app_exceptions=False)
        options = {"base_url": "http://localhost", "timeout": 60, **client}
        async with httpx.AsyncClient(transport=transport, **options) as opened:
            return await script(opened)

    return asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    """Let the others run until something holds."""
    while not true():
        await asyncio.sleep(0.001)


def ask(client: httpx.AsyncClient, prompt: str = "the mug", shade: int = 0) -> Awaitable[httpx.Response]:
    return client.post("/v1/segment", files={"image": png(shade)}, data={"prompt": prompt})


def metric(text: str, name: str) -> float:
    """The value of one line of /metrics."""
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


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


def form(image: Any = RED, **fields: str) -> dict[str, Any]:
    files = {} if image is None else {"image": image}
    return {"files": files, "data": fields or {"prompt": "the mug"}}


def chat(prompt: Any = "the mug", url: str | None = None, **more: Any) -> dict[str, Any]:
    url = url or "data:image/png;base64," + base64.b64encode(RED).decode()
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], **more}
