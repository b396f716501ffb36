"""What was read of a frame is not read again: each answer is, to the last bit, that of a prompt read whole."""

from __future__ import annotations

import dataclasses
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.prefix import Prefixes
from pixelrt.recording import plain
from pixelrt.segmenter import open_bundle

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 60, 40, 3), np.uint8)
OTHER_HEAD = "Look: <im_start><image><im_end>\nWhat is this? ASSISTANT:"
# Frame and question, in an order in which all that can be known beforehand is: nothing, head, head and picture.
ASKED = [(0, "What?"), (0, "Find it, please."), (1, "What?"), (0, OTHER_HEAD), (0, OTHER_HEAD), (0, "What?")]
TOKENS = 6


@pytest.fixture(scope="module", params=[False, True], ids=["in place", "growing"])
def segmenter(request: pytest.FixtureRequest, golden_bundle_a: Path) -> Any:
    bundle = Bundle.read(golden_bundle_a)
    found: Any = open_bundle(bundle, OrtBackend(bundle, compatible=request.param))
    found.drafts = None
    found.prefixes.skip_padding = False  # which adds numbers up in another order
    return found


def lengths(segmenter: Any) -> tuple[Any, list[int]]:
    """A twin with prefixes of its own, and how many rows each of its forwards has."""
    twin, found = plain(segmenter), []

    class Counted:
        file, memory = segmenter._language.file, segmenter._language.memory

        def __call__(self, inputs: Any, into: Any = None) -> Any:
            found.append(inputs["inputs_embeds"].shape[1])
            return segmenter._language(inputs, into)

    twin._language = Counted()  # type: ignore[attr-defined]
    twin.prefixes = Prefixes(twin._language, skip_padding=False)  # type: ignore[attr-defined]
    return twin, found


def same(answer: Any, other: Any) -> None:
    assert answer.token_ids == other.token_ids
    for mask, wanted in zip(answer.masks, other.masks, strict=True):
        np.testing.assert_array_equal(mask.low_res_logits, wanted.low_res_logits)
        assert np.array_equal(mask.mask, wanted.mask)


def test_a_prompt_goes_on_from_what_was_read(segmenter: Any) -> None:
    twin, read = lengths(segmenter)
    frames = [twin.encode(picture) for picture in PICTURES]
    picture = len(frames[0].tokens)
    head = len(segmenter.prompt("What?").head)
    whole = {text: len(segmenter.check(text)) - 1 + picture for _, text in ASKED}
    known = [0, head + picture, head, 0, len(segmenter.prompt(OTHER_HEAD).head) + picture, 0]
    for (which, text), before in zip(ASKED, known, strict=True):
        read.clear()
        answer = twin.segment(frames[which], text, TOKENS)
        assert read[0] == whole[text] - before, text
        same(answer, plain(segmenter).segment(frames[which], text, TOKENS))
    assert answer.masks


def test_several_frames_are_kept(segmenter: Any) -> None:
    twin, read = lengths(segmenter)
    twin.prefixes.keep = 2
    frames = [twin.encode(picture) for picture in PICTURES]
    for _ in range(2):
        read.clear()
        for frame in frames:
            twin.segment(frame, "What?", 1)
    assert max(read) < len(frames[0].tokens)
    twin.prefixes.keep = 0
    read.clear()
    for _ in range(3):
        twin.segment(frames[0], "What?", 1)
    assert min(read[1:]) > len(frames[0].tokens)


def test_a_frame_that_is_gone_is_not_taken_for_another(segmenter: Any) -> None:
    twin, read = lengths(segmenter)
    for picture in (*PICTURES, *PICTURES):  # a new frame may get an old one's place in memory
        frame = twin.encode(picture)
        same(twin.segment(frame, "What?", TOKENS), plain(segmenter).segment(frame, "What?", TOKENS))
        del frame
        gc.collect()
    other = dataclasses.replace(twin.encode(PICTURES[0]))
    read.clear()
    twin.segment(other, "What?", 1)
    assert max(read) > len(other.tokens)


def test_questions_at_once(segmenter: Any) -> None:
    frame = segmenter.encode(PICTURES[0])
    texts = ["What?", "Find it, please.", OTHER_HEAD, "Where?"]
    wanted = {text: plain(segmenter).segment(frame, text, TOKENS) for text in texts}
    found: list[tuple[str, Any]] = []

    def ask(text: str) -> None:
        found.extend((text, segmenter.segment(frame, text, TOKENS)) for _ in range(2))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 * len(texts)
    for text, answer in found:
        same(answer, wanted[text])


def test_a_question_that_failed_leaves_nothing_wrong(segmenter: Any) -> None:
    """Stopped in the middle of an answer, and in the middle of the picture."""
    twin, _ = lengths(segmenter)
    frame = twin.encode(PICTURES[0])
    working = twin._language.__class__.__call__
    for fails_at in (1, 3):
        calls = []

        def failing(self: Any, inputs: Any, into: Any = None, at: int = fails_at, calls: Any = calls) -> Any:
            calls.append(1)
            out = working(self, inputs, into)
            if len(calls) == at:
                raise KeyboardInterrupt
            return out

        twin._language.__class__.__call__ = failing
        with pytest.raises(KeyboardInterrupt):
            twin.segment(frame, "Find it, please.", TOKENS)
        twin._language.__class__.__call__ = working
        same(twin.segment(frame, "What?", TOKENS), plain(segmenter).segment(frame, "What?", TOKENS))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)], ids=["portrait", "landscape", "square"])
def test_padding_is_skipped(segmenter: Any, shape: tuple[int, int]) -> None:
    """The others keep their positions: with wrong ones other words are said."""
    twin, read = lengths(segmenter)
    twin.prefixes.skip_padding = True
    frame = twin.encode(np.resize(PICTURES, (*shape, 3)))
    padded = int((~frame.token_valid).sum())
    assert (padded > 0) == (shape[0] != shape[1])
    for text in ("What?", "Find it, please.", OTHER_HEAD):
        read.clear()
        answer = twin.segment(frame, text, TOKENS)
        wanted = plain(segmenter).segment(frame, text, TOKENS)
        assert (
            read[0] < len(frame.tokens)
            or read[0] == len(segmenter.check(text)) - 1 + len(frame.tokens) - padded
        )
        assert answer.token_ids == wanted.token_ids
        assert len(answer.masks) == len(wanted.masks) > 0
        for mask, other in zip(answer.masks, wanted.masks, strict=True):
            # A sum without the masked zeros may be added up in another order.
            np.testing.assert_allclose(mask.low_res_logits, other.low_res_logits, atol=1e-3)
