"""The order of the work of two streams and of several threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from pixelrt.engine import Joined
from pixelrt.language import Context

from tests.doubles.bundle import Doubles
from tests.doubles.inputs import encoder_inputs, rows
from tests.doubles.machine import Fault


def test_the_next_picture_does_not_wait_for_the_language_graph(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    """Two streams: work is given to both before the host waits for either."""
    encoder, engine = backend.open("encoder"), backend.open("language")
    frame = encoder(encoder_inputs(backend))
    tokens = frame["image_tokens"][0]
    head, count = rows(backend, 3), len(tokens)
    context = Context(engine, count + 6)
    waits = doubles.machine.waits
    read = context.read(
        Joined((head, tokens, head)), {"logit_rows": np.array([count], np.int64)}, np.ones(count + 6, bool)
    )
    following = encoder(encoder_inputs(backend, seed=1))
    # Twice: before each engine's pinned memory is written again.
    assert doubles.machine.waits - waits <= 2
    got = np.asarray(read["logits"])
    streams = {stream for stream, what in doubles.machine.done if what.startswith("engine")}
    assert len(streams) == 2
    wanted = Context(reference.open("language"), count + 6)
    rest = wanted(np.concatenate([head, np.asarray(tokens), head]), [count])
    np.testing.assert_allclose(got[0], rest.logits, atol=2e-5)
    assert np.isfinite(np.asarray(following["level0"])).all()


class During:
    """Does something on another thread in the middle of the next capture, as `pixelrt.pipeline` may."""

    def __init__(self, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, wait_s: float) -> None:
        self.work: Any = None
        self.errors: list[Exception] = []
        self.thread = threading.Thread(target=self._run)
        begin = doubles.libcuda.cuStreamBeginCapture_v2

        def begun(stream: Any, mode: int) -> int:
            code = begin(stream, mode)
            if self.work is not None and self.thread.ident is None:
                self.thread.start()
                self.thread.join(wait_s)
            return code

        monkeypatch.setattr(doubles.libcuda, "cuStreamBeginCapture_v2", begun)

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.errors.append(error)


def test_masks_are_drawn_while_the_encoder_is_captured(
    backend: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = backend.open("encoder"), backend.open("pixel_decoder")
    features, inputs = encoder(encoder_inputs(backend)), encoder_inputs(backend, seed=1)
    features.pop("image_tokens")
    shape = next(t.shape for t in decoder.file.inputs if t.name == "seg_hidden")
    given = {
        "seg_hidden": np.random.default_rng(7).normal(size=(1, *shape[1:])).astype(np.float32),
        **features,
    }
    wanted = np.asarray(decoder(given)["low_res_masks"])
    during = During(doubles, monkeypatch, wait_s=30)
    drawn: list[Any] = []
    during.work = lambda: drawn.append(decoder(given)["low_res_masks"])
    for _ in range(2):
        out = encoder(inputs)
        np.asarray(out["image_tokens"])
        del out
    during.thread.join()
    assert not during.errors and np.array_equal(np.asarray(drawn[0]), wanted)


def test_a_frame_is_begun_while_a_step_is_captured(
    backend: Any, reference: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing a cache is work on the language graph's stream: it waits until the capture is over."""
    engine = backend.open("language")
    during = During(doubles, monkeypatch, wait_s=0.2)
    context, other = Context(engine, 100), Context(reference.open("language"), 100)
    made: list[Context] = []

    def begin() -> None:
        made.append(Context(engine, 100))
        made[0]._begin()

    during.work = begin
    for step in [rows(backend, 1) for _ in range(4)]:
        got, wanted = context(step, [0]).logits, other(step, [0]).logits
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    during.thread.join()
    assert not during.errors
    assert not np.asarray(made[0]._past["past.0.key"]).any()


@pytest.mark.parametrize("broken", ["after", "mark"])
def test_the_double_finds_a_missing_wait(
    backend: Any, broken: str, monkeypatch: pytest.MonkeyPatch, doubles: Doubles
) -> None:
    """Streams that do not wait for each other, and blocks that do not know their last work."""
    import pixelrt.cuda as cuda

    usual = cuda.Stream.mark
    if broken == "after":
        monkeypatch.setattr(cuda.Stream, "after", lambda self, blocks: None)
    else:
        monkeypatch.setattr(cuda.Stream, "mark", lambda self, blocks: usual(self, []))
    frame = backend.open("encoder")(encoder_inputs(backend))
    with pytest.raises(Fault, match="does not wait for"):
        Context(backend.open("language"), 400)(Joined((frame["image_tokens"][0],)), [0])
        np.asarray(frame["level0"])
