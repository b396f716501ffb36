"""Chat in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")


from tests.runtime.served import chat, service, talk  # noqa: E402


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
