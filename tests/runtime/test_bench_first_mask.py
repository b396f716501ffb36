"""The time to the first mask is that of a stream, and nothing of a stream is counted elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt.bench.measurement import load_subject
from pixelrt.bench.samples import Question, first_mask, take_sample
from pixelrt.masks import Mask

MASK = Mask(np.ones((2, 2), np.bool_), 1.0, "", None, None, np.zeros((0, 0), np.float32))
SLEEP_S = 0.05


def test_nothing_behind_the_first_mask_is_asked_for() -> None:
    taken: list[str] = []

    def pieces() -> Iterator[Any]:
        try:
            for name, piece in (("words", "Sure"), ("first", MASK), ("second", MASK)):
                time.sleep(SLEEP_S)
                taken.append(name)
                yield piece
        finally:
            taken.append("closed")

    segmenter: Any = SimpleNamespace(encode=lambda image: image, stream=lambda *_, **__: pieces())
    spent = first_mask(segmenter, Question(Path("p.png"), "the mug", "words"), 12)
    assert taken == ["words", "first", "closed"]
    assert spent >= 2 * 1e3 * SLEEP_S  # it did wait for the words and the mask


@pytest.mark.parametrize("family", ["pixellm", "psalm"])
def test_the_stream_is_not_part_of_the_answer(
    family: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = request.getfixturevalue({"pixellm": "golden_bundle_b", "psalm": "golden_psalm_bundle"}[family])
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(picture)
    subject, question = load_subject(bundle), Question(picture, "the mug", "words")
    take_sample(
        subject.segmenter, subject.backend, question, 12
    )  # what is learnt and read once is from now on known
    sample = take_sample(subject.segmenter, subject.backend, question, 12)
    assert sample.masks
    kind = type(subject.segmenter)
    streamed, segment, encoded = kind.stream, kind.segment, kind.encode
    frames: list[Any] = []

    def late(self: Any, frame: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        time.sleep(SLEEP_S)
        frames.append(frame)
        return streamed(self, frame, *args, **kwargs)

    def slow(self: Any, image: Any) -> Any:
        time.sleep(SLEEP_S)
        return encoded(self, image)

    def noted(self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
        frames.append(frame)
        return segment(self, frame, *args, **kwargs)

    for name, other in (("stream", late), ("segment", noted), ("encode", slow)):
        monkeypatch.setattr(kind, name, other)
    again = take_sample(subject.segmenter, subject.backend, question, 12)
    assert again.forwards == sample.forwards and not subject.backend.take()
    assert (
        again.spent["first_mask"] >= 2 * 1e3 * SLEEP_S
    )  # it reads the picture itself, and waits for the stream
    assert again.spent["total"] <= 1e3 * (again.stop - again.start)
    assert frames[0] is not frames[-1]  # of the answer's frame the picture has been read
