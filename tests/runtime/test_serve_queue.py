"""The server's queue around a model that waits for the test. Nothing sleeps to be in time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")


from tests.runtime.served import Model, ask, chat, error_of, metric, service, talk, until  # noqa: E402


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
