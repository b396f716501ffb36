"""One engine of TensorRT: where its outputs are, which profile it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.language import Context

from tests.doubles.bundle import Doubles
from tests.doubles.inputs import encoder_inputs, rows


def test_outputs_stay_on_the_gpu_until_they_are_asked_for(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    waits = doubles.machine.waits
    out = engine(inputs)
    assert doubles.machine.waits == waits  # the host went on
    wanted = reference.open("encoder")(inputs)
    assert out.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (out[name].shape, out[name].dtype) == (value.shape, value.dtype)
        assert np.array_equal(np.asarray(out[name]), value), name


def test_two_calls_before_anybody_reads(backend: Any, reference: Any) -> None:
    """The second must not write pinned memory that the first is still copied from."""
    engine, other = backend.open("encoder"), reference.open("encoder")
    inputs = [encoder_inputs(backend, seed) for seed in range(2)]
    for out, given in zip([engine(given) for given in inputs], inputs, strict=True):
        wanted = other(given)
        assert all(np.array_equal(np.asarray(out[name]), wanted[name]) for name in wanted)


def test_what_is_on_the_gpu_is_not_copied_to_the_next_graph(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    features = backend.open("encoder")(encoder_inputs(backend))
    features.pop("image_tokens")
    decoder = backend.open("pixel_decoder")
    shape = next(t.shape for t in decoder.file.inputs if t.name == "seg_hidden")
    hidden = np.random.default_rng(7).normal(size=(2, *shape[1:])).astype(np.float32)
    got = decoder({"seg_hidden": hidden, **features})["low_res_masks"]
    wanted = reference.open("pixel_decoder")(
        {"seg_hidden": hidden, **{name: np.asarray(value) for name, value in features.items()}}
    )["low_res_masks"]
    assert np.array_equal(np.asarray(got), wanted)
    to_gpu = [what for _, what in doubles.machine.done if what == "copy to GPU"]
    assert len(to_gpu) == 3  # pixels, patch_valid, seg_hidden


def test_the_profile_is_the_narrowest_that_fits(backend: Any) -> None:
    engine = backend.open("language")
    context = Context(engine, 100)
    context(rows(backend, 30), [29])
    context(rows(backend, 1), [0])
    context(rows(backend, 6), range(6))
    decode, prefill = engine.profiles
    assert (decode.context.runs, prefill.context.runs) == (2, 1)
    assert decode.context.profile == 1 and prefill.context.profile == 0


def test_a_shape_that_no_profile_has(backend: Any) -> None:
    engine, features = backend.open("pixel_decoder"), encoder_inputs(backend)
    features = backend.open("encoder")(features)
    shape = next(t.shape for t in engine.file.inputs if t.name == "seg_hidden")
    features.pop("image_tokens")
    with pytest.raises(InputError, match=r"pixel_decoder engine takes seg_hidden from 1 x .* not 5 x"):
        engine({"seg_hidden": np.zeros((5, *shape[1:]), np.float32), **features})
    assert engine.memory.most("seg_hidden", 0) == 4
