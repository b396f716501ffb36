"""An answer as it comes is `segment`'s answer; nothing is left behind where somebody stops, or something fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from forced import first_position, forced, ids_of
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError
from pixelrt.families.pixellm import PixelLM
from pixelrt.generate import Codebook
from pixelrt.masks import Answer, Mask
from pixelrt.prefix import Prefixes
from pixelrt.segmenter import Frame, open_bundle
from pixelrt.streaming import BLANK, THREAD, settled

SEG = list(range(400, 406))
CODEBOOK = Codebook(tuple(SEG))
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
QUESTION = "What?"
TWO = ("Sure, the red circle", SEG, "and the blue star", SEG, ".")
PATIENCE_S = 20  # for what happens at once; a test that waits this long has failed

# One call of the pixel decoder for each target against one for all: fp32 sums in another order at most.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def seg(golden_bundle_a: Path) -> PixelLM:
    bundle = Bundle.read(golden_bundle_a)
    return open_bundle(bundle, OrtBackend(bundle, threads=1))  # several threads wait busily for each other


@pytest.fixture(scope="module")
def frame(seg: PixelLM) -> Frame:
    return seg.encode(PICTURE)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not painters()


def painters() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def assert_same(streamed: Answer, whole: Answer) -> None:
    """Everything but the time, and rounding in the logits."""
    assert (streamed.text, streamed.token_ids, streamed.finished) == (
        whole.text,
        whole.token_ids,
        whole.finished,
    )
    assert len(streamed.masks) == len(whole.masks)
    for got, wanted in zip(streamed.masks, whole.masks, strict=True):
        assert (got.label, got.span) == (wanted.label, wanted.span)
        np.testing.assert_allclose(got.low_res_logits, wanted.low_res_logits, rtol=0, atol=ROUNDING)
        if np.array_equal(got.low_res_logits, wanted.low_res_logits):
            np.testing.assert_array_equal(got.mask, wanted.mask)
            assert (got.score, got.box) == (wanted.score, wanted.box)
        else:  # a pixel on the border may fall to the other side
            assert (got.mask != wanted.mask).mean() < 1e-3
            assert got.score == pytest.approx(wanted.score, abs=1e-3)


def taken_apart(pieces: list[Any]) -> tuple[list[str], list[Mask], Answer]:
    """Words, masks and the answer, which comes last and once."""
    *before, answer = pieces
    assert isinstance(answer, Answer)
    words = [piece for piece in before if isinstance(piece, str)]
    masks = [piece for piece in before if isinstance(piece, Mask)]
    assert len(words) + len(masks) == len(before)
    return words, masks, answer


ANSWERS: dict[str, tuple[Any, ...]] = {
    "none": ("There is no red square.",),
    "one": ("Sure, it is", SEG, "."),
    "two": TWO,
    "five that touch": ("All of them:", SEG * 5),
    "masks alone": (SEG, SEG),
    "letters that look like a mark": ("The sign [SEG] stands by the red circle", SEG),
    "bytes": ("caf\u00e9 \u20ac\n\n\U0001f600 ok", SEG, "\u20ac", SEG),
}


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
@pytest.mark.parametrize("name", ANSWERS)
def test_it_is_the_answer_of_segment(seg: PixelLM, frame: Frame, name: str, seg_runs: str) -> None:
    twin = forced(seg, QUESTION, *ANSWERS[name])
    whole = twin.segment(frame, QUESTION, seg_runs=seg_runs)
    words, masks, answer = taken_apart(list(twin.stream(frame, QUESTION, seg_runs=seg_runs)))
    assert_same(answer, whole)
    assert "".join(words) == whole.text and all(words)
    assert masks == answer.masks  # the same objects
    assert set(answer.timing) == set(whole.timing)


def test_blanks_before_a_full_stop_are_not_given(seg: PixelLM, frame: Frame) -> None:
    """They begin words, and the text has none of them."""
    blank, stop = (seg.prompt.tokenizer.token_to_id(piece) for piece in (BLANK, "."))
    twin = forced(seg, QUESTION, "a cup", SEG, [blank, blank, stop, blank])
    words, _, answer = taken_apart(list(twin.stream(frame, QUESTION)))
    assert "".join(words) == answer.text == "a cup [SEG]."


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
@pytest.mark.parametrize("limit", [1, 8, 40])
def test_an_answer_that_is_cut_off(seg: PixelLM, frame: Frame, limit: int, seg_runs: str) -> None:
    twin = forced(seg, QUESTION, "Sure, the red circle", SEG, "and the blue star", SEG, end=False)
    whole = twin.segment(frame, QUESTION, limit, seg_runs)
    words, masks, answer = taken_apart(list(twin.stream(frame, QUESTION, limit, seg_runs)))
    assert_same(answer, whole)
    assert not answer.finished
    assert "".join(words) == whole.text and masks == answer.masks


def test_what_the_model_says_itself(seg: PixelLM, frame: Frame) -> None:
    """The golden model, with nothing forced: eight tokens of noise and runs that are completed."""
    words, masks, answer = taken_apart(list(seg.stream(frame, QUESTION, 8)))
    assert_same(answer, seg.segment(frame, QUESTION, 8))
    assert masks and "".join(words) == answer.text


def test_a_drafted_answer_is_the_same(seg: PixelLM, frame: Frame) -> None:
    """All words and both runs are there after one forward; they come in the same order."""
    twin: Any = forced(seg, QUESTION, *TWO)
    slow = list(twin.stream(frame, QUESTION))
    known = slow[-1].token_ids
    twin.drafts = SimpleNamespace(of=lambda _: lambda ids: [known[len(ids) :]], learn=lambda *_: None)
    whole = twin.segment(frame, QUESTION)
    assert whole.decoding.forwards == 1
    fast = list(twin.stream(frame, QUESTION))
    assert_same(fast[-1], whole)
    assert fast[-1].decoding == whole.decoding
    assert taken_apart(fast)[0] == taken_apart(slow)[0]


def test_words_are_whole_and_a_mask_comes_behind_its_mark(seg: PixelLM, frame: Frame) -> None:
    twin = forced(seg, QUESTION, *TWO)
    pieces = list(twin.stream(frame, QUESTION))
    words, masks, answer = taken_apart(pieces)
    text = "Sure, the red circle [SEG] and the blue star [SEG]."
    assert answer.text == text
    assert [word.strip() for word in words] == [
        "Sure,",
        "the",
        "red",
        "circle",
        "[SEG]",
        "and",
        "the",
        "blue",
        "star",
        "[SEG]",
        ".",
    ]
    assert [mask.label for mask in masks] == ["red circle", "blue star"]
    for mask in masks:
        said = "".join(piece for piece in pieces[: pieces.index(mask)] if isinstance(piece, str))
        assert mask.span is not None and len(said) >= mask.span[1]


def test_a_mask_is_drawn_while_the_model_goes_on(
    seg: PixelLM, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The language graph waits behind the first run until its mask is there; the mask then comes before the words."""
    twin = forced(seg, QUESTION, *TWO)
    drawn = threading.Event()
    draw = twin.draw

    def noted(*arguments: Any) -> Any:
        try:
            return draw(*arguments)
        finally:
            drawn.set()

    monkeypatch.setattr(twin, "draw", noted, raising=False)

    behind_the_run = first_position(seg, QUESTION) + len(ids_of(seg, *TWO[:2]))

    def wait(position: int) -> None:
        if position >= behind_the_run:
            assert drawn.wait(PATIENCE_S), "the first mask is not being drawn"

    twin._language.reading = wait
    pieces = list(twin.stream(frame, QUESTION))
    first = next(i for i, piece in enumerate(pieces) if isinstance(piece, Mask))
    said = "".join(piece for piece in pieces[:first] if isinstance(piece, str))
    assert "star" not in said


def test_targets_of_the_prompt_come_first(seg: PixelLM, frame: Frame) -> None:
    mark = "".join(f"[SEG{i}]" for i in range(6))
    prompt = seg.prompt.template.replace("{question}", "What?") + f" the cup {mark} and"
    words, masks, answer = taken_apart(list(seg.stream(frame, prompt, 3)))
    assert_same(answer, seg.segment(frame, prompt, 3))
    assert (masks[0].label, masks[0].span) == ("", None) and "".join(words) == answer.text


def test_one_malformed_run_gives_no_mask_of_the_original(seg: PixelLM, frame: Frame) -> None:
    """A mask that was given could not be taken back."""
    twin = forced(seg, QUESTION, "the cup", SEG, "and", SEG[:4], "or so")
    words, masks, answer = taken_apart(list(twin.stream(frame, QUESTION, seg_runs="original")))
    assert_same(answer, twin.segment(frame, QUESTION, seg_runs="original"))
    assert not masks and not answer.masks
    assert "".join(words) == answer.text == "the cup [SEG] and [SEG0] [SEG1] [SEG2] [SEG3] or so"


@pytest.mark.parametrize("taken", [0, 3, 9])
def test_whoever_stops_leaves_nothing(seg: PixelLM, frame: Frame, taken: int) -> None:
    twin = forced(seg, QUESTION, *TWO)
    stream = twin.stream(frame, QUESTION)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert not painters()
    with pytest.raises(StopIteration):
        next(stream)


def test_what_was_not_begun_is_not_drawn(seg: PixelLM, frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five targets are there at once; who stops while the first is drawn waits for that one alone."""
    twin = forced(seg, QUESTION, SEG * 5, "and no more words")
    begun: list[int] = []
    go_on = threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.append(len(begun))
        assert go_on.wait(PATIENCE_S)
        return PixelLM.draw(twin, *arguments)

    monkeypatch.setattr(twin, "draw", slow, raising=False)
    stream = twin.stream(frame, QUESTION)
    said = ""
    while "and" not in said:
        said += next(stream)
    threading.Timer(0.2, go_on.set).start()
    stream.close()
    assert begun == [0]


def test_an_error_of_the_pixel_decoder_ends_it(
    seg: PixelLM, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = forced(seg, QUESTION, *TWO)

    def fail(*_: Any) -> Any:
        raise ArithmeticError("no such mask")

    monkeypatch.setattr(twin, "draw", fail, raising=False)
    with pytest.raises(ArithmeticError, match="no such mask"):
        list(twin.stream(frame, QUESTION))
    assert not painters()


def test_an_error_of_the_language_model_ends_it(seg: PixelLM, frame: Frame) -> None:
    twin = forced(seg, QUESTION, *TWO)

    def fail(position: int) -> None:
        if position > first_position(seg, QUESTION) + 12:
            raise ArithmeticError("no such word")

    twin._language.reading = fail
    taken: list[Any] = []
    with pytest.raises(ArithmeticError, match="no such word"):
        taken.extend(twin.stream(frame, QUESTION))
    assert not painters()


def test_a_stream_gives_its_context_back(seg: PixelLM, frame: Frame) -> None:
    """A question asked inside the loop finds the kept context taken and gets one of its own; after it, it is free."""
    twin: Any = forced(seg, QUESTION, *TWO)
    whole = twin.segment(frame, QUESTION)
    twin.prefixes = Prefixes(twin._language)
    stream = twin.stream(frame, QUESTION)
    next(stream)
    assert_same(twin.segment(frame, QUESTION), whole)
    assert_same(list(stream)[-1], whole)
    stopped = twin.stream(frame, QUESTION)
    next(stopped)
    stopped.close()
    assert not any(one.taken for one in twin.prefixes._kept)
    assert_same(list(twin.stream(frame, QUESTION))[-1], whole)


def test_the_thread_ends_before_the_answer(seg: PixelLM, frame: Frame) -> None:
    """Who takes the answer and no more need not close anything."""
    stream = forced(seg, QUESTION, *TWO).stream(frame, QUESTION)
    while not isinstance(next(stream), Answer):
        pass
    assert not painters()


def test_two_streams_of_one_frame_at_once(seg: PixelLM, frame: Frame) -> None:
    twin = forced(seg, QUESTION, *TWO)
    whole = twin.segment(frame, QUESTION)
    ours, theirs = twin.stream(frame, QUESTION), twin.stream(frame, QUESTION)
    next(theirs)
    assert_same(list(ours)[-1], whole)
    assert_same(twin.segment(frame, QUESTION), whole)
    assert_same(list(theirs)[-1], whole)


def test_bad_input_is_refused_at_once(seg: PixelLM, frame: Frame) -> None:
    with pytest.raises(InputError, match="is empty"):
        seg.stream(frame, "")
    with pytest.raises(InputError, match="Choose one of"):
        seg.stream(frame, QUESTION, seg_runs="some")


def test_psalm_gives_its_masks_and_then_the_result(golden_psalm_bundle: Path) -> None:
    psalm = pixelrt.load(golden_psalm_bundle)
    frame = psalm.encode(PICTURE)
    frame = psalm.encode(PICTURE)
    query = pixelrt.Regions(boxes=[(2, 2, 20, 20), (5, 5, 30, 50)])
    whole = psalm.segment(frame, query)
    *masks, result = psalm.stream(frame, query)
    assert [mask.label for mask in masks] == [mask.label for mask in whole.masks] == ["box 1", "box 2"]
    for got, wanted in zip(masks, whole.masks, strict=True):
        np.testing.assert_array_equal(got.mask, wanted.mask)
    assert result.text == "" and len(result.masks) == 2
    with pytest.raises(InputError):
        psalm.stream(frame, pixelrt.Regions(points=[(500, 500)]))


def test_settled_text_never_changes(seg: PixelLM) -> None:
    """Of random tokens: whatever comes behind, the text of the settled ones begins the text of all."""
    tokenizer, rng = seg.prompt.tokenizer, np.random.default_rng(3)
    every = [token for token in range(tokenizer.get_vocab_size()) if token not in (seg.eos, *SEG)]
    # One wrong byte makes unreadable what stands beside it, so a letter may change again.
    raw = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in b"a\n \xe2\x82\xac"]
    words = [token for token in every if tokenizer.id_to_token(token).startswith(BLANK)]

    def begins_word(token: int) -> bool:
        return tokenizer.id_to_token(token).startswith(BLANK)

    held = 0
    for _ in range(40):
        ids: list[int] = []
        while len(ids) < 24:
            kind = rng.random()
            if kind < 0.2:
                ids += SEG if kind < 0.15 else SEG[: int(rng.integers(1, 6))]
            elif kind < 0.6:
                ids += [int(token) for token in rng.choice(raw, 2)]
            else:
                ids.append(int(rng.choice(every if kind < 0.7 else words)))
        before, whole = 0, seg.render(ids)[0]
        for count in range(1, len(ids) + 1):
            end = settled(ids[:count], CODEBOOK, begins_word)
            assert before <= end <= count
            before, text = end, seg.render(ids[:end])[0]
            assert whole.startswith(text)
        held += len(ids) - before
    assert held < 40 * 12  # it does settle
