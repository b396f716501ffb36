"""A context goes back to an earlier length: what follows is as if the rest had never been read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt.language import Context
from psalm_toy import WIDTH, Graph, adding_language

RNG = np.random.default_rng(0)
HEAD, FIRST, SECOND = (RNG.normal(size=(n, WIDTH)).astype(np.float32) for n in (5, 9, 3))


def asked(rows: int) -> dict[str, Any]:
    return {"pool": np.eye(rows, dtype=np.float32)[None], "query_rows": np.arange(rows)}


@pytest.mark.parametrize("cache", ["in_place", "concat"])
@pytest.mark.parametrize("room", [14, 40])
def test_rewound_is_unread(cache: str, room: int) -> None:
    context = Context(Graph(adding_language, cache), room)
    context.read(HEAD, asked(5))
    first = context.read(FIRST, asked(9))["queries"]
    context.rewind(5)
    second = context.read(SECOND, asked(3))["queries"]
    fresh = Context(Graph(adding_language, cache), 8)
    np.testing.assert_allclose(
        fresh.read(np.concatenate([HEAD, SECOND]), asked(8))["queries"][:, 5:], second, atol=1e-5
    )
    context.rewind(5)
    assert np.array_equal(context.read(FIRST, asked(9))["queries"], first)
    assert context.length == 14 and context.forwards == 4


@pytest.mark.parametrize("cache", ["in_place", "concat"])
def test_room_grows_and_keeps_what_was_read(cache: str) -> None:
    context = Context(Graph(adding_language, cache), 0)
    with pytest.raises(ValueError, match="cannot take 5"):
        context.read(HEAD, asked(5))
    context.rewind(0, 5)
    context.read(HEAD, asked(5))
    context.rewind(5, 14)
    got = context.read(FIRST, asked(9))["queries"]
    fresh = Context(Graph(adding_language, cache), 14)
    wanted = fresh.read(np.concatenate([HEAD, FIRST]), asked(14))["queries"][:, 5:]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    context.rewind(5, 3)
    assert context.capacity == 14  # never less
    with pytest.raises(ValueError, match="cannot go back to 6"):
        context.rewind(6)
