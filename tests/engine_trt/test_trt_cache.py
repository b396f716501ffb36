"""The key/value cache that stays on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.language import Context

from tests.doubles.bundle import Doubles, Sizes, with_engines
from tests.doubles.inputs import rows, width


@pytest.mark.parametrize("language", ["language", "language_compat"])
def test_the_cache(
    language: str, doubles: Doubles, small: Path, tmp_path: Path, reference: OrtBackend
) -> None:
    """Prefill in pieces, decoding one and several, going back: as ONNX Runtime, to the last bit."""
    from pixelrt.engine_trt import TrtBackend

    folder = with_engines(small, tmp_path / "b", Sizes(prefill=16), language)
    backend = TrtBackend(Bundle.read(folder, verify=False))
    engine = backend.open("language")
    contexts = [Context(engine, 200), Context(reference.open("language"), 200)]
    steps = [rows(backend, n) for n in (40, 1, 6, 3)]
    visible = np.random.default_rng(7).random(40) > 0.2
    for context in contexts:
        context(steps[0], [3, 20, 39], visible)
        context(steps[1], [0])
    got, wanted = (context(steps[2], range(6)) for context in contexts)
    # Both read the same numbers; attention over more masked positions may add in another order.
    np.testing.assert_allclose(got.logits, wanted.logits, atol=2e-5)
    for context in contexts:
        context.rewind(17)
    got, wanted = (context(steps[3], [2, 0]) for context in contexts)
    np.testing.assert_allclose(got.hidden, wanted.hidden, atol=2e-5)


def test_rows_asked_for_come_back_in_their_order(
    backend: Any, doubles: Doubles, small: Path, tmp_path: Path
) -> None:
    from pixelrt.engine_trt import TrtBackend

    folder = with_engines(small, tmp_path / "b", Sizes(prefill=16))
    narrow = TrtBackend(Bundle.read(folder, verify=False)).open("language")
    prompt, asked = rows(backend, 50), [40, 0, 39, 17, 49]
    got = Context(narrow, 60)(prompt, asked)
    wanted = Context(backend.open("language"), 60)(prompt, asked)
    np.testing.assert_allclose(got.hidden, wanted.hidden, atol=2e-5)
    np.testing.assert_allclose(got.logits, wanted.logits, atol=2e-5)


def test_a_cache_holds_what_the_engine_was_built_for(backend: Any) -> None:
    engine = backend.open("language")
    assert Context(engine, 10).capacity == 512
    with pytest.raises(ValueError, match="cache holds 512 tokens, 600"):
        Context(engine, 600)


def test_attended_lengths_are_rounded_up_and_masked(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend.open("language")
    prompt, step = rows(backend, 20), rows(backend, 1)
    results = []
    for rounded in (1, 128):
        engine.step = rounded
        context = Context(engine, 100)
        context(prompt, [19])
        results.append(context(step, [0]).logits)
    np.testing.assert_allclose(*results, atol=2e-5)


def test_an_old_context_leaves_nothing_behind(backend: Any) -> None:
    """Memory is used again; a nan that a context left must not reach the next one through 0 * nan."""
    engine = backend.open("language")
    prompt = rows(backend, 20)
    first = Context(engine, 100)
    wanted = first(prompt, [19]).logits
    first(np.full((1, width(backend)), np.nan, np.float32), [0])
    del first
    assert np.array_equal(Context(engine, 100)(prompt, [19]).logits, wanted)
