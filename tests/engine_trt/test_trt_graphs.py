"""CUDA graphs: what is captured, when, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt.language import Context

from tests.doubles.bundle import Doubles
from tests.doubles.inputs import encoder_inputs, rows


def test_the_third_call_alike_is_a_graph(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, open_reference = backend.open("encoder"), reference.open("encoder")
    for turn in range(5):
        inputs = encoder_inputs(backend, seed=turn)
        out, wanted = engine(inputs), open_reference(inputs)
        assert all(np.array_equal(np.asarray(out[name]), wanted[name]) for name in wanted)
        del out  # so that its memory, and the addresses, are used again
    assert doubles.libcuda.launched == 3
    assert engine.profiles[0].context.runs == 3  # plain, plain and captured


def test_other_addresses_are_another_graph(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    kept = [engine(inputs) for _ in range(4)]
    assert doubles.libcuda.launched == 0
    wanted = reference.open("encoder")(inputs)["image_tokens"]
    assert all(np.array_equal(np.asarray(out["image_tokens"]), wanted) for out in kept)


def test_decoding_steps_are_graphs(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, other = backend.open("language"), reference.open("language")
    prompt, steps = rows(backend, 20), [rows(backend, 1) for _ in range(8)]
    for _ in range(2):
        contexts = [Context(engine, 100), Context(other, 100)]
        for context in contexts:
            context(prompt, [19])
        for step in steps:
            got, wanted = (context(step, [0]).logits for context in contexts)
            np.testing.assert_allclose(got, wanted, atol=2e-5)
        del contexts, context  # so that the next ones have their addresses
    # The first two steps of all, and the first two prompts, are no graphs.
    assert doubles.libcuda.launched == 14


def test_graphs_are_few(backend: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelrt.engine_trt.GRAPHS_MAX", 3)
    engine = backend.open("language")
    for count in range(1, 8):
        for _ in range(2):
            context = Context(engine, 100)
            context(rows(backend, count), [0])
            del context
    assert doubles.libcuda.alive == 3


def test_an_engine_that_cannot_be_captured_runs_without(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    doubles.libcuda.refuses = True
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    engine(inputs)
    with pytest.warns(pixelrt.errors.PixelrtWarning, match="encoder engine runs without CUDA graphs"):
        engine(inputs)
    out = engine(inputs)["image_tokens"]
    assert np.array_equal(np.asarray(out), reference.open("encoder")(inputs)["image_tokens"])
    assert doubles.libcuda.launched == 0
