"""PixelLM's golden questions, and the walk through its graphs that they take.

The answers are read teacher-forced: each token is the golden one, so that what follows a near tie stays comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pixelrt.engine import Array, Joined, Value
from pixelrt.errors import InputError
from pixelrt.families.pixellm import FEATURES, PixelLM
from pixelrt.generate import prompt_rows
from pixelrt.goldens.file import Goldens
from pixelrt.goldens.take import ROW_CELLS, Take
from pixelrt.image import Rgb, prepare
from pixelrt.language import Context
from pixelrt.masks import Answer
from pixelrt.queries import Query

MAX_NEW_TOKENS = 12
ASKED, NAMED = "asked", "named"
QUESTION = "Segment the red circle and the blue square."


def questions(seg: PixelLM) -> dict[str, str]:
    """One that the model answers; one whose prompt names two targets itself: a batch of two, whatever the answer."""
    run = "".join(str(seg.prompt.tokenizer.id_to_token(token)) for token in seg.codebook.ids)
    named = f"{QUESTION} Sure, it is {run} and {run}."
    found = sum(token in seg.codebook.ids for token in seg.prompt(named).tail)
    if found != 2 * seg.codebook.run:
        raise InputError(f"the tokenizer reads {found} codebook tokens in {named!r}")
    return {ASKED: QUESTION, NAMED: named}


def walk(seg: PixelLM, picture: Rgb, asked: Mapping[str, str | Query], most: int, take: Take) -> None:
    """most: tokens of an answer."""
    prepared = prepare(picture, seg.image_spec)
    pixels, valid = prepared.pixels, prepared.patch_valid
    out = seg._encoder({"pixels": pixels, "patch_valid": valid})
    for name, value in out.items():
        take.see("encoder", name, value)
    if (seg._encoder.memory.most("pixels", 0) or 1) > 1:
        other = np.concatenate([pixels[..., ::-1], pixels]), np.concatenate([valid, valid])
        for name, value in seg._encoder({"pixels": other[0], "patch_valid": other[1]}).items():
            take.see("encoder", name, np.asarray(value)[1:], how="as the second of two pictures")
    tokens = take.fix("image_tokens", out["image_tokens"])[0]
    features = {name: out[name] for name in FEATURES}
    for label, question in asked.items():
        hidden = _read(seg, tokens, prepared.token_valid, str(question), most, take, label)
        count = len(hidden) // seg.codebook.run
        if not count or len(hidden) % seg.codebook.run:
            continue
        targets = take.fix(f"{label}.targets", np.stack(hidden))
        targets = targets.reshape(count, seg.scales, seg.codebook.run // seg.scales, -1)
        drawn = np.concatenate(list(_drawn(seg, targets, features)))
        take.see("pixel_decoder", f"{label}.low_res_masks", drawn)
        take.see("pixel_decoder", f"{label}.first", drawn[:1])
        alone = next(_drawn(seg, targets[:1], features))
        take.see("pixel_decoder", f"{label}.first", alone, how="drawn alone")
        take.fix(f"{label}.masks", drawn)


def _drawn(seg: PixelLM, targets: Array, features: Mapping[str, Value]) -> Iterator[Array]:
    most = seg._pixel_decoder.memory.most("seg_hidden", 0) or len(targets)
    for at in range(0, len(targets), most):
        part = {"seg_hidden": targets[at : at + most], **features}
        yield np.asarray(seg._pixel_decoder(part)["low_res_masks"])


def _read(
    seg: PixelLM, tokens: Array, valid: Array, question: str, most: int, take: Take, label: str
) -> list[Array]:
    """Hidden states (H,) that predicted codebook tokens, those of the prompt first."""
    ids, run = seg.prompt(question), seg.codebook.run
    image_end = len(ids.head) + len(tokens)
    length = image_end + len(ids.tail)
    if length + most + run > seg.max_positions:
        raise InputError(f"they take {length + most + run} positions, {seg.max_positions} are there")
    visible = np.ones(length, np.bool_)
    visible[len(ids.head) : image_end] = valid
    context = Context(seg._language, length + most + run)
    prompt = Joined((seg.table(ids.head), tokens, seg.table(ids.tail)))
    rows = context(prompt, [*prompt_rows(ids.tail, image_end, seg.codebook), length - 1], visible)
    hidden, count = list(rows.hidden[:-1]), 0
    for i, row in enumerate(hidden):
        take.see("language", f"{label}.prompt.{i + 1}", row, ROW_CELLS)
    while True:
        take.see("language", f"{label}.logits.{count + 1}", rows.logits[-1], ROW_CELLS)
        take.see("language", f"{label}.hidden.{count + 1}", rows.hidden[-1], ROW_CELLS)
        token = take.choose(f"{label}.{count + 1}", rows.logits[-1])
        step = list(seg.codebook.ids) if token in seg.codebook.ids else [token]
        if len(step) > 1:
            hidden.append(rows.hidden[-1])
        count += len(step)
        last = token == seg.eos or count >= most
        if last and len(step) == 1:
            return hidden
        rows = context(seg.table(step[:-1] if last else step), range(len(step) - last))
        if len(step) > 1:
            for i, row in enumerate(rows.hidden[: run - 1]):
                take.see("language", f"{label}.hidden.{count - run + 2 + i}", row, ROW_CELLS)
            hidden.extend(rows.hidden[: run - 1])
        if last:
            return hidden


def answers(seg: PixelLM, goldens: Goldens) -> Iterator[tuple[str, list[int], list[Array], Answer]]:
    """Label, golden tokens and low-resolution masks, and the answer that `segment` gives here.

    Twice over: what has the shapes of a call before is run in another way (a CUDA graph).
    """
    frame = seg.encode(goldens.picture)
    for turn in ("", ", once more"):
        for label, question in goldens.questions.items():
            answer: Any = seg.segment(frame, question, max_new_tokens=goldens.max_new_tokens)
            yield (
                label + turn,
                _tokens(seg, goldens, label),
                list(goldens.given.get(f"{label}.masks", ())),
                answer,
            )


def _tokens(seg: PixelLM, goldens: Goldens, label: str) -> list[int]:
    """The golden answer; the other tokens of a run are not chosen."""
    found: list[int] = []
    while (choice := goldens.choices.get(f"{label}.{len(found) + 1}")) is not None:
        token = choice["token"]
        found += seg.codebook.ids if token in seg.codebook.ids else [token]
    return found
