"""`pixelrt serve` with the shipped models: its answers are those of the same process without HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from PIL import Image
from pixelrt import query_json, rle
from pixelrt.queries import Classes, Refer, Regions

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")

from pixelrt.serve.app import Service  # noqa: E402
from pixelrt.serve.settings import Settings  # noqa: E402

from scripts.page_screenshot import served  # noqa: E402
from tests.runtime.served import metric, talk  # noqa: E402


@pytest.fixture(scope="module")
def pixellm(tiny_bundle: Path) -> Iterator[Service]:
    yield from running(tiny_bundle)


@pytest.fixture(scope="module")
def psalm(psalm_bundle: Path) -> Iterator[Service]:
    yield from running(psalm_bundle)


def running(bundle: Path) -> Iterator[Service]:
    service = Service(pixelrt.load(bundle), Settings(bundle.name))
    service.worker.start()
    yield service
    service.worker.close()


def form_of(query: Any) -> dict[str, str]:
    """The fields of a form that ask this."""
    entry = query_json.to_json(query)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()} | (
        {"prompt": entry["prompt"][0]} if entry.get("task") == "referring" else {}
    )


def same(served_masks: list[dict[str, Any]], masks: Any) -> None:
    """Requests that were answered together have sums added up in another order: a score's last digits differ, and a
    pixel may whose logit is as good as zero."""
    assert len(served_masks) == len(masks) > 0
    for told, mask in zip(served_masks, masks, strict=True):
        assert told["label"] == mask.label and told["score"] == pytest.approx(float(mask.score), abs=1e-4)
        assert np.count_nonzero(rle.decode(told["rle"]) != mask.mask) <= 1


def test_words(pixellm: Service, samples: list[tuple[Path, str]]) -> None:
    picture, prompt = samples[0]
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": prompt}, part]}]}

    async def script(client: Any) -> Any:
        data = {"prompt": prompt, "label_map": "true", "overlay": "true"}
        answer = await client.post("/v1/segment", files={"image": picture.read_bytes()}, data=data)
        whole = await client.post("/v1/chat/completions", json=chat)
        stream = await client.post("/v1/chat/completions", json=chat | {"stream": True})
        return answer.json(), whole.json(), stream.text, (await client.get("/metrics")).text

    answer, whole, stream, metrics = talk(pixellm, script)
    segmenter = pixellm.worker.segmenter
    truth = segmenter.segment(segmenter.encode(picture), prompt)
    assert answer["text"] == truth.text and answer["image"]["size"] == list(truth.masks[0].mask.shape)
    same(answer["masks"], truth.masks)
    message = whole["choices"][0]["message"]
    assert message["content"] == truth.text and message["masks"] == answer["masks"]
    events = [json.loads(line[6:]) for line in stream.split("\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == truth.text
    streamed = [mask for delta in deltas for mask in delta.get("masks", [])]
    assert [mask.pop("index") for mask in streamed] == list(range(len(truth.masks)))
    same(streamed, truth.masks)
    assert metric(metrics, "pixelrt_encoder_runs_total") == 1
    numbers = np.array(Image.open(io.BytesIO(base64.b64decode(answer["label_map"]))))
    for number, mask in enumerate(truth.masks, start=1):
        later = np.logical_or.reduce([np.zeros_like(mask.mask), *(m.mask for m in truth.masks[number:])])
        assert np.array_equal(numbers == number, mask.mask & ~later)
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["overlay"])))
    assert drawn.format == "PNG" and min(drawn.size) >= 400


def test_tasks(psalm: Service, samples: list[tuple[Path, str]]) -> None:
    picture = samples[0][0]
    segmenter = psalm.worker.segmenter
    frame = segmenter.encode(picture)
    names = ["red circle", "blue star"]
    star = segmenter.segment(frame, Refer("the blue star")).masks[0].mask
    queries = [
        Classes(names),
        Classes(names, "instance", min_score=0.3),
        Classes(names, "semantic"),
        Refer("the blue star"),
        Regions(
            points=[(72, 190)], scribbles=[[(65, 185), (80, 200)]], boxes=[(181, 46, 270, 138)], masks=[star]
        ),
    ]

    async def script(client: Any) -> Any:
        image = {"image": picture.read_bytes()}
        answers = await asyncio.gather(
            *(client.post("/v1/segment", files=image, data=form_of(query)) for query in queries)
        )
        outside = await client.post(
            "/v1/segment", files=image, data={"task": "interactive", "points": "[[9999, 1]]"}
        )
        return answers, outside, (await client.get("/v1/models")).json(), (await client.get("/metrics")).text

    answers, outside, models, metrics = talk(psalm, script)
    for query, answer in zip(queries, answers, strict=True):
        assert answer.status_code == 200, answer.text
        same(answer.json()["masks"], segmenter.segment(frame, query).masks)
    assert outside.status_code == 400 and "outside the picture" in outside.json()["error"]["message"]
    assert models["data"][0]["tasks"] == list(query_json.ASKED)
    assert metric(metrics, "pixelrt_encoder_runs_total") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_the_program(tiny_bundle: Path, samples: list[tuple[Path, str]]) -> None:
    picture, prompt = samples[0]
    with served(tiny_bundle, "--token", "secret-token") as (address, process):
        assert address.startswith("http://127.0.0.1:")
        files, headers = {"image": picture.read_bytes()}, {"Authorization": "Bearer secret-token"}
        answer = httpx.post(
            address + "/v1/segment", files=files, data={"prompt": prompt}, headers=headers, timeout=60
        )
        assert answer.status_code == 200 and answer.json()["masks"]
        assert httpx.get(address + "/readyz", timeout=60).status_code == 200
    assert process.returncode == 0
