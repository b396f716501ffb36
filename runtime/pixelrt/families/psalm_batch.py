"""PSALM's answers to several prompts about a picture: one language pass for those of a kind, one drawing for all.

The kind of condition (class, sentence, region) is one number of a pass, so that prompts of different kinds are read
apart. Pictures are, too: the pass over head and picture is most of the work and gains nothing from company.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pixelrt.batch import share
from pixelrt.branches import Branches, Part, together
from pixelrt.engine import Array, Joined, Value
from pixelrt.families.psalm_prompt import REGION, Tail
from pixelrt.language import positions
from pixelrt.segmenter import Frame, stage

if TYPE_CHECKING:
    from pixelrt.families.psalm import Psalm

PROMPTS_MAX = 8  # drawn together: each has logits of all its queries
Decoded = tuple[Value, Array, dict[str, float]]  # mask logits (Q, h, w), scores (Q, K), timing


@dataclass(eq=False)
class Question:
    """queries (1, Q, D) and conditions (1, K, D) are what the language model made of it."""

    frame: Frame
    tail: Tail
    vectors: Array | None  # (R, H), where `tail` has regions
    timing: dict[str, float] = field(default_factory=dict)  # its share
    read: dict[str, Value] = field(default_factory=dict)


def decoded(model: Psalm, asked: Sequence[tuple[Frame, Tail, Array | None]]) -> list[Decoded]:
    """What each question, a frame and how the prompt is written, gives the rules of psalm_masks."""
    questions = [Question(*one) for one in asked]
    about: dict[Frame, list[Question]] = {}
    for question in questions:
        about.setdefault(question.frame, []).append(question)
    found: dict[Question, Decoded] = {}
    for frame, same in about.items():
        for group in groups(model, same):
            spent: dict[str, float] = {}
            with stage(spent, "language"), model._reading:
                _read(model, frame, group)
            share(spent, [question.timing for question in group])
        found |= _drawn(model, frame, same)
    return [found[question] for question in questions]


def groups(model: Psalm, questions: Sequence[Question]) -> list[list[Question]]:
    """Which are read together: those of a kind, as long as one pass takes them behind head and picture."""
    found: list[list[Question]] = []
    open_: dict[str, list[Question]] = {}  # kind -> the group that it is added to
    for question in questions:
        group = open_.get(question.tail.kind)
        if group is None or not _fits(model, [*group, question]):
            group = open_[question.tail.kind] = []
            found.append(group)
        group.append(question)
    return found


def _fits(model: Psalm, questions: Sequence[Question]) -> bool:
    tails = [question.tail for question in questions]
    end = len(model.prompt.head) + model.image_tokens + sum(map(len, tails))
    sizes = {
        ("inputs_embeds", 1): end,
        ("pool", 1): sum(tail.conditions for tail in tails),
        ("query_rows", 0): sum(len(tail.mask_rows) for tail in tails),
    }
    engine = model._language
    return end <= min(model._rows_max, _room(model)) and together(engine) and engine.memory.takes(sizes)


def _room(model: Psalm) -> int:
    return positions(model._language, sys.maxsize)


def _read(model: Psalm, frame: Frame, questions: Sequence[Question]) -> None:
    if len(questions) == 1:
        only = questions[0]
        only.read = model._read(frame, only.tail, only.vectors)
        return
    context, head = frame.context, model.prompt.head
    if context is None:
        raise ValueError("the frame was encoded by another family")
    start = len(head) + len(frame.tokens)
    first = context.length < start
    capacity = start + sum(len(question.tail) for question in questions)
    context.rewind(0 if first else start, min(capacity, _room(model)))
    branches = Branches(context)
    before = [Part(0, Joined((model.table(head), frame.tokens)))] if first else []
    parts = []
    for question in questions:
        tail = question.tail
        rows = model.table(np.where(tail.ids == REGION, 0, tail.ids))
        if question.vectors is not None:
            rows[tail.ids == REGION] = question.vectors
        parts.append(Part(branches.open(start), rows))
    line = branches.line([*before, *parts])
    at = sum(len(part.embeddings) for part in before)
    pools, query_rows = [], []
    for question in questions:
        size = len(question.tail)
        pools.append(np.pad(question.tail.pool(slice(0, size)), ((0, 0), (at, len(line) - at - size))))
        query_rows.append(question.tail.mask_rows + at)
        at += size
    out = branches.run(
        line,
        0,
        len(line),
        {
            "pool": np.concatenate(pools)[None],
            "query_rows": np.concatenate(query_rows),
            "condition_kind": np.array([model.condition_kinds[questions[0].tail.kind]], np.int64),
        },
    )
    context.rewind(start)
    context.trim()  # frames are kept, and all prompts together take more than the next one needs
    conditions, queries = np.asarray(out["conditions"]), np.asarray(out["queries"])
    ends = np.cumsum([len(pool) for pool in pools])[:-1]
    for question, own, asked in zip(
        questions,
        np.split(conditions, ends, axis=1),
        np.split(queries, len(questions), axis=1),
        strict=True,
    ):
        question.read = {"conditions": own, "queries": asked}


def _drawn(model: Psalm, frame: Frame, questions: Sequence[Question]) -> dict[Question, Decoded]:
    """Of questions about one picture, of any kinds. Conditions are filled up with zeros to as many for all; a score
    is a product of one condition."""
    most = min(PROMPTS_MAX, model._pixel_decoder.memory.most("queries", 0) or PROMPTS_MAX)
    found: dict[Question, Decoded] = {}
    for start in range(0, len(questions), most):
        group = questions[start : start + most]
        counts = [question.read["conditions"].shape[1] for question in group]
        inputs: dict[str, Value] = {
            "queries": _joined([question.read["queries"] for question in group]),
            "conditions": _joined([_filled(question.read["conditions"], max(counts)) for question in group]),
            "condition_kind": np.array(
                [model.condition_kinds[question.tail.kind] for question in group], np.int64
            ),
        }
        spent: dict[str, float] = {}
        with stage(spent, "pixel_decoder"):
            out = model._pixel_decoder({**inputs, **frame.features})
        share(spent, [question.timing for question in group])
        scores = np.asarray(out["scores"])
        for i, (question, count) in enumerate(zip(group, counts, strict=True)):
            found[question] = out["mask_logits"][i], scores[i][:, :count], question.timing
    return found


def _joined(parts: Sequence[Value]) -> Value:
    return parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])


def _filled(conditions: Value, count: int) -> Value:
    missing = count - conditions.shape[1]
    return conditions if not missing else np.pad(np.asarray(conditions), ((0, 0), (0, missing), (0, 0)))
