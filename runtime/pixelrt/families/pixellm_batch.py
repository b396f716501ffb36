"""PixelLM's answers to several questions: one language pass for all that are not over, one drawing for each picture."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pixelrt.batch import share
from pixelrt.branches import GROWTH, Branches, Part, generate_together, together
from pixelrt.engine import Joined
from pixelrt.families.pixellm_masks import labelled
from pixelrt.generate import Generation, Writing, no_drafts, prompt_rows
from pixelrt.language import Context, positions
from pixelrt.masks import Answer, Mask
from pixelrt.prefix import tokens_of
from pixelrt.prompt import Prompt
from pixelrt.segmenter import Frame, stage

if TYPE_CHECKING:
    from pixelrt.families.pixellm import PixelLM

# Tokens of prompts that are read together: attention multiplies each with all, and takes memory for it in every head.
TOKENS_MAX = 2048
TARGETS_MAX = 32  # drawn together: the pixel decoder makes the picture's features anew for each


@dataclass(eq=False)
class Question:
    frame: Frame
    ids: Prompt
    budget: int  # tokens that the answer may have
    timing: dict[str, float] = field(default_factory=dict)  # its share
    generation: Generation = field(default_factory=Generation)
    masks: list[Mask] = field(default_factory=list)


def answered(
    model: PixelLM, frames: Sequence[Frame], prompts: Sequence[Prompt], max_new_tokens: int, seg_runs: str
) -> list[Answer]:
    """The answer to each prompt about its frame, equal to `segment`'s."""
    questions = [
        Question(frame, ids, model.budget(len(ids.head) + len(frame.tokens) + len(ids.tail), max_new_tokens))
        for frame, ids in zip(frames, prompts, strict=True)
    ]
    for group in groups(model, questions):
        if len(group) > 1:
            _write(model, group, seg_runs)
            continue
        for question in group:
            with stage(question.timing, "language"):
                steps = model.steps(question.frame, question.ids, max_new_tokens, seg_runs)
                *_, question.generation = steps
    _draw(model, questions)
    answers = []
    for question in questions:
        text, spans = model.render(question.generation.token_ids)
        places = model.places(question.generation, text, spans) if question.masks else []
        masks = labelled(question.masks, places)
        answers.append(model.answer(question.frame, question.generation, question.timing, masks))
    return answers


def groups(model: PixelLM, questions: Sequence[Question]) -> list[list[Question]]:
    """Which are read together: those with one head, and as many as there is room for.

    Alone is a prompt whose first words behind the picture are a target's tokens, which the picture's last token
    predicts; and every one on an engine that does not go on behind any cache.
    """
    engine, found = model._language, list[list[Question]]()
    room = positions(engine, sys.maxsize)
    heads: dict[tuple[int, ...], list[Question]] = {}
    for question in questions:
        if not together(engine) or question.ids.tail[0] in model.codebook.ids:
            found.append([question])
        else:
            heads.setdefault(tuple(question.ids.head), []).append(question)
    for head, alike in heads.items():
        order = {frame: i for i, frame in enumerate(dict.fromkeys(question.frame for question in alike))}
        frames: set[Frame] = set()
        read, kept = TOKENS_MAX + 1, 0  # the first one begins a group
        for question in sorted(alike, key=lambda question: order[question.frame]):
            own = len(question.ids.tail) + (0 if question.frame in frames else len(question.frame.tokens))
            answer = question.budget + model.codebook.run - 1
            if read + own > TOKENS_MAX or kept + own + answer > room:
                found.append([])
                frames, read, kept = set(), len(head), len(head)
                own = len(question.ids.tail) + len(question.frame.tokens)
            found[-1].append(question)
            frames.add(question.frame)
            read, kept = read + own, kept + own + answer
    return found


def _write(model: PixelLM, questions: Sequence[Question], seg_runs: str) -> None:
    """Generations of questions with one head."""
    head = questions[0].ids.head
    frames = list(dict.fromkeys(question.frame for question in questions))
    tails = sum(len(question.ids.tail) for question in questions)
    end = len(head) + len(frames[0].tokens)
    capacity = len(head) + sum(len(frame.tokens) for frame in frames) + tails + GROWTH * len(questions)
    capacity = min(capacity, positions(model._language, sys.maxsize))
    clock = time.perf_counter()
    with _beginning(model, frames, head, capacity) as context:
        branches = Branches(context)
        before, parents = _parts(model, branches, frames, head)
        drafts = [model.drafts.of(question.ids.tail) if model.drafts else None for question in questions]
        of: dict[int, Question] = {}
        writings: dict[int, Writing] = {}
        for question, draft in zip(questions, drafts, strict=True):
            tail = question.ids.tail
            branch = branches.open(end, parents[question.frame])
            of[branch] = question
            writings[branch] = Writing(
                model.table,
                model.table(tail),
                np.ones(len(tail), np.bool_),
                prompt_rows(tail, 0, model.codebook),
                model.codebook,
                eos=model.eos,
                max_new_tokens=question.budget,
                seg_runs=seg_runs,
                drafter=draft.first if draft else no_drafts,
            )
            question.generation = writings[branch].result
        for going in generate_together(branches, writings, before):
            now = time.perf_counter()
            share({"language": 1e3 * (now - clock)}, [of[branch].timing for branch in going])
            clock = now
    for question, draft in zip(questions, drafts, strict=True):
        if model.drafts and draft and question.generation.finished:
            model.drafts.learn(draft, question.generation.token_ids)


def _parts(
    model: PixelLM, branches: Branches, frames: Sequence[Frame], head: list[int]
) -> tuple[list[Part], dict[Frame, int]]:
    """What is to be read before the questions, and the branch that those about a frame go on from. One picture belongs
    to the beginning; several have a branch each."""
    read = branches.position[0]
    if len(frames) == 1:
        frame = frames[0]
        whole = Joined((model.table(head), frame.tokens))
        visible = np.concatenate([np.ones(len(head), np.bool_), frame.token_valid])
        rest = whole.rows(read, len(whole))
        return ([Part(0, rest, visible=visible[read:])] if len(rest) else []), {frame: 0}
    parts = [Part(0, model.table(head)[read:])] if read < len(head) else []
    parents = {frame: branches.open(len(head)) for frame in frames}
    parts += [
        Part(branch, Joined((frame.tokens,)), visible=frame.token_valid) for frame, branch in parents.items()
    ]
    return parts, parents


@contextmanager
def _beginning(model: PixelLM, frames: Sequence[Frame], head: list[int], capacity: int) -> Iterator[Context]:
    """What the language model has read of head and picture already; of several pictures, of the head alone.

    The first picture is read right behind the head, and stays known there for its next question.
    """
    if model.prefixes is None:
        yield Context(model._language, capacity)
        return
    with model.prefixes.context(frames[0], head, capacity) as context:
        if len(frames) > 1:
            context.rewind(min(context.length, len(head)))
        try:
            yield context
        finally:
            context.rewind(min(context.length, len(head) + tokens_of(frames[0], context)))
            context.trim()  # what all prompts and answers took is more than the next one needs


def _draw(model: PixelLM, questions: Sequence[Question]) -> None:
    """Masks, without labels: all targets in one picture together."""
    frames: dict[Frame, list[Question]] = {}
    for question in questions:
        frames.setdefault(question.frame, []).append(question)
    for frame, about in frames.items():
        found = [(question, question.generation.targets(model.codebook)) for question in about]
        drawn = [(question, targets) for question, targets in found if targets is not None]
        owners = [question for question, targets in drawn for _ in targets]
        for start in range(0, len(owners), TARGETS_MAX):
            targets = np.concatenate([each for _, each in drawn])[start : start + TARGETS_MAX]
            here, spent = owners[start : start + TARGETS_MAX], dict[str, float]()
            masks = model.draw(frame, targets, spent)
            share(spent, [question.timing for question in here])
            for question, mask in zip(here, masks, strict=True):
                question.masks.append(mask)
