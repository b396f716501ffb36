"""Requests that wait are answered in one batch where their clients want whole answers."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from pixelrt.errors import InputError

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")

from tests.runtime.served import Model, ask, metric, png, service, talk, until  # noqa: E402


def chat(client: Any, prompt: str, **more: Any) -> Any:
    url = "data:image/png;base64," + base64.b64encode(png(4)).decode()
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": parts}], **more}
    return client.post("/v1/chat/completions", json=body)


class Together(Model):
    """`batches` keeps the prompts of each batch and the shades of their pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[list[str], list[int]]] = []

    def segment_batch(
        self, images: Any, prompts: Any, max_new_tokens: int = 512, seg_runs: str = ""
    ) -> list[Any]:
        self.batches.append((list(prompts), [int(frame.image[0, 0, 0]) for frame in images]))
        if "refused" in prompts:
            raise InputError("Prompt 1 of 2: no.")
        asked = len(self.asked)
        answers = [self.segment(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        del self.asked[asked:]
        return answers


def asked_at_once(model: Model, *requests: Any, **settings: Any) -> tuple[list[Any], str]:
    """The answers to requests that came while another was being answered, and the metrics."""
    model.go.clear()
    with service(model, **settings) as served:

        async def script(client: Any) -> Any:
            first = asyncio.ensure_future(ask(client, "first", 1))
            await until(model.busy.is_set)
            later = []
            for request in requests:
                later.append(asyncio.ensure_future(request(client)))
                await until(lambda: len(served.worker._waiting) == len(later))
            model.go.set()
            await first
            return [await each for each in later]

        return talk(served, script), served.worker.metrics.text().decode()


def test_what_waits_is_one_batch() -> None:
    """Of both pictures, each encoded once; an answer that is streamed, or shorter, comes by itself."""
    model = Together()
    responses, metrics = asked_at_once(
        model,
        lambda client: ask(client, "a", 2),
        lambda client: ask(client, "b", 3),
        lambda client: chat(client, "c", stream=True),
        lambda client: chat(client, "d", max_tokens=9),
        lambda client: ask(client, "e", 2),
    )
    assert [response.status_code for response in responses] == [200] * 5
    assert model.batches == [(["a", "e", "b"], [2, 2, 3])]
    assert model.asked == ["first", "c", "d"]
    bodies = [responses[i].json() for i in (0, 1, 4)]
    assert [body["text"] for body in bodies] == ["a", "b", "e"]
    assert [body["image"]["reused"] for body in bodies] == [False, False, True]
    assert metric(metrics, "pixelrt_encoder_runs_total") == 4
    assert metric(metrics, "pixelrt_answers_total") == 6


def test_one_that_fails_fails_alone() -> None:
    for bad, code in (("fail", 500), ("refused", 200)):  # of itself, the second is answered
        model = Together()
        responses, metrics = asked_at_once(
            model, lambda client, bad=bad: ask(client, bad), lambda client: ask(client, "good")
        )
        assert [response.status_code for response in responses] == [code, 200]
        assert len(model.batches) == 1
        assert metric(metrics, "pixelrt_failures_total") == (code == 500)


def test_no_more_pictures_at_once_than_may_be_kept() -> None:
    model = Together()
    requests = [lambda client, shade=shade: ask(client, f"{shade}", shade) for shade in (2, 3, 4)]
    asked_at_once(model, *requests, lambda client: ask(client, "again", 2), frames_bytes=0)
    assert [shades for _, shades in model.batches] == [[2, 2]]
    assert model.encoded == [1, 2, 3, 4]
