"""Several turns on one cache say what a model says that reads the whole conversation anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from forced import ids_of, muted
from pixelrt.bundle import Bundle
from pixelrt.conversation import Conversation
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError
from pixelrt.families.pixellm import PixelLM
from pixelrt.language import Context
from pixelrt.masks import Answer
from pixelrt.prompt import Prompt
from pixelrt.segmenter import Frame, open_bundle

SEG = list(range(400, 406))
RUN = " ".join(f"[SEG{i}]" for i in range(6))
EOS = 2
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
QUESTIONS = ("What?", "And the red circle, which one is it?", "Why", "Where is the other?")
# Of logits: keys and values of a text that is read in pieces or at once differ in fp32's rounding.
ROUNDING = 1e-3


def loaded(path: Path, **options: Any) -> PixelLM:
    bundle = Bundle.read(path)
    return open_bundle(bundle, OrtBackend(bundle, threads=1, **options))


@pytest.fixture(scope="module")
def seg(golden_bundle_a: Path) -> PixelLM:
    return loaded(golden_bundle_a)


@pytest.fixture(scope="module")
def frame(seg: PixelLM) -> Frame:
    return seg.encode(PICTURE)


def anew(seg: PixelLM, frame: Frame, said: Prompt, limit: int) -> tuple[list[int], np.ndarray | None]:
    """The specification: read all that was said in one piece, then decode one token at a time, runs in full.

    Gives the answer's tokens and its masks' logits.
    """
    tail = list(said.tail)
    rows = np.concatenate([seg.table(said.head), np.asarray(frame.tokens), seg.table(tail)])
    visible = np.ones(len(rows), bool)
    visible[len(said.head) : len(said.head) + len(frame.tokens)] = frame.token_valid
    context = Context(seg._language, seg.max_positions)
    found = context(rows, [len(rows) - 1], visible)
    ids: list[int] = []
    hidden: list[np.ndarray] = []
    rest: list[int] = []
    while len(ids) < limit or rest:
        within = bool(rest)
        token = rest.pop(0) if within else int(found.logits[0].argmax())
        if token in SEG:
            hidden.append(found.hidden[0])
            if not within:
                token, *rest = SEG
        ids.append(token)
        if token == EOS:
            break
        found = context(seg.table([token]), [0])
    if not hidden:
        return ids, None
    targets = np.stack(hidden).reshape(len(hidden) // 6, 2, 3, -1)
    drawn = seg._pixel_decoder({"seg_hidden": targets, **frame.features})["low_res_masks"]
    return ids, np.asarray(drawn)


def assert_turn(seg: PixelLM, frame: Frame, answer: Answer, asked: Prompt, limit: int) -> None:
    ids, drawn = anew(seg, frame, asked, limit)
    assert answer.token_ids == ids
    assert len(answer.masks) == (0 if drawn is None else len(drawn))
    for mask, wanted in zip(answer.masks, () if drawn is None else drawn, strict=True):
        np.testing.assert_allclose(mask.low_res_logits, wanted, rtol=0, atol=ROUNDING)


def asked_in(chat: Conversation, question: str) -> Prompt:
    """All up to the answer to come, put together by hand."""
    if chat.said is None:
        return chat.model.prompt(question)
    ended = chat.said.tail[-1] == EOS
    turn = chat.model.prompt.tokenizer.encode(f"USER: {question} ASSISTANT:").ids
    return Prompt(chat.said.head, [*chat.said.tail, *([] if ended else [EOS]), *turn])


def tell(chat: Conversation, question: str, *parts: Any) -> Answer:
    """Ask, and have this answered."""
    asked = asked_in(chat, question)
    model: Any = chat.model
    first = len(asked.head) + len(chat.frame.tokens) + len(asked.tail)
    model._language.say(first, [*ids_of(model, *parts), EOS])
    return chat.ask(question)


@pytest.mark.parametrize("compatible", [False, True])
def test_it_is_what_reading_all_of_it_anew_gives(golden_bundle_a: Path, compatible: bool) -> None:
    """What the model says itself, with masks and without, ended and cut off."""
    seg = loaded(golden_bundle_a, compatible=compatible)
    frame = seg.encode(PICTURE)
    chat = seg.chat(frame)
    masks = []
    for question, limit in zip(QUESTIONS, (8, 1, 15, 6), strict=True):
        asked = asked_in(chat, question)
        answer = chat.ask(question, limit)
        assert_turn(seg, frame, answer, asked, limit)
        assert chat.said == Prompt(asked.head, [*asked.tail, *answer.token_ids])
        masks.append(len(answer.masks))
    assert sum(masks) > 0


def test_turns_are_written_as_the_original_writes_them(seg: PixelLM, frame: Frame) -> None:
    """Token for token what its tokenizer makes of the whole text; and the next answer is that to the whole text."""
    twin = muted(seg)
    chat = twin.chat(frame)
    first = tell(chat, "Where is it?", "Sure, the red circle", SEG, ".")
    second = tell(chat, "And the star?", "There is no star")
    third = tell(chat, "Both?", "the red circle", SEG, "and the blue star", SEG)
    assert [len(answer.masks) for answer in (first, second, third)] == [1, 0, 2]
    assert second.text == "There is no star" and [m.label for m in third.masks] == ["red circle", "blue star"]
    text = (
        seg.prompt.template.replace("{question}", "Where is it?")
        + f" Sure, the red circle {RUN}."
        + "</s>USER: And the star? ASSISTANT: There is no star"
        + f"</s>USER: Both? ASSISTANT: the red circle {RUN} and the blue star {RUN}</s>"
    )
    assert chat.said == seg.prompt(text)
    answer = chat.ask("So?", 8)
    whole = seg.segment(frame, text + "USER: So? ASSISTANT:", 8)
    assert answer.token_ids == whole.token_ids and answer.text == whole.text
    assert len(whole.masks) == len(answer.masks) + 3  # a prompt's targets are drawn again


def test_the_cache_is_gone_on_with(seg: PixelLM, frame: Frame) -> None:
    """A further question reads itself, the end of the answer before it, and nothing of the picture."""
    twin: Any = muted(seg)
    chat = twin.chat(frame)
    tell(chat, "Where is it?", "Sure, the red circle", SEG)
    known = chat._context.length
    reads: list[int] = []
    twin._language.reading = reads.append
    tell(chat, "And the star?", "There is none")
    assert reads[0] == known > len(frame.tokens)


def test_an_engine_that_cannot_go_on_reads_all_again(
    seg: PixelLM, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "can_append", lambda self, count, after: not after)
    chat = seg.chat(frame)
    for question in QUESTIONS[:2]:
        asked = asked_in(chat, question)
        assert_turn(seg, frame, chat.ask(question, 8), asked, 8)


def test_what_fails_or_is_refused_was_never_said(seg: PixelLM, frame: Frame) -> None:
    twin: Any = muted(seg)
    chat = twin.chat(frame)
    with pytest.raises(InputError, match="is empty"):
        chat.ask(" ")
    assert chat.said is None
    tell(chat, "Where is it?", "Sure, the red circle", SEG)
    said, known = chat.said, chat._context.length
    for question, sentence in [("", "is empty"), ("an <image>", "Leave it out"), ("<unk>", "holds <unk>")]:
        with pytest.raises(InputError, match=sentence):
            chat.ask(question)
    with pytest.raises(InputError, match="multiple of 6"):
        chat.ask("What is [SEG0]?")

    def fail(position: int) -> None:
        if position > known + 20:
            raise ArithmeticError("no such word")

    twin._language.reading = fail
    with pytest.raises(ArithmeticError):
        tell(chat, "And the star?", "There is none", "and none", "and none", "and none")
    assert chat.said == said and chat._context.length == known
    twin._language.reading = lambda position: None
    twin._language.words.clear()
    asked = asked_in(chat, "And the star?")
    assert_turn(seg, frame, chat.ask("And the star?", 8), asked, 8)


def test_positions_run_out(seg: PixelLM, frame: Frame) -> None:
    """The last of them are for an answer, and to complete a run; a shorter question may still be asked."""
    twin: Any = muted(seg)
    first = len(seg.check("What?")) - 1 + len(frame.tokens)
    twin.max_positions = first + 60
    chat = twin.chat(frame)
    tell(chat, "What?", "Sure, the red circle", SEG)
    long = "Is it here? " * 10
    with pytest.raises(InputError, match=r"of the model's \d+ positions.*Begin another: seg.chat\(frame\)"):
        chat.ask(long)
    answer = chat.ask("Where?")
    assert answer.token_ids
    while True:
        try:
            answer = chat.ask("Where?", 9)
        except InputError as error:
            assert "positions" in str(error)
            break
    assert chat._context.length <= twin.max_positions


def test_a_run_has_room_at_the_very_end(seg: PixelLM, frame: Frame) -> None:
    twin: Any = muted(seg)
    first = len(seg.check("What?")) - 1 + len(frame.tokens)
    twin.max_positions = first + 5
    with pytest.raises(InputError, match="positions"):
        twin.chat(frame).ask("What?")
    twin.max_positions = first + 6
    answer = tell(twin.chat(frame), "What?", SEG)
    assert answer.token_ids == SEG and len(answer.masks) == 1


def test_targets_of_a_question_are_drawn(seg: PixelLM, frame: Frame) -> None:
    chat = muted(seg).chat(frame)
    tell(chat, "What?", "the cup", SEG)
    answer = tell(chat, f"Is it {RUN}?", "it is", SEG)
    assert [(mask.label, mask.span is None) for mask in answer.masks] == [("", True), ("it", False)]


def test_psalm_has_none(golden_psalm_bundle: Path) -> None:
    psalm = pixelrt.load(golden_psalm_bundle)
    with pytest.raises(InputError, match="PSALM answers without words"):
        psalm.chat(PICTURE)
