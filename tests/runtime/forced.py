"""A language model that says what it is told to; all that it computes beside its words is its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pixelrt.families.pixellm import PixelLM


class Forced:
    """The language graph with other logits for some tokens: those that stand where it was told what to say.

    reading: called before each run with its first position.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.words: dict[int, int] = {}  # position -> token
        self.reading: Callable[[int], None] = lambda position: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def say(self, first: int, answer: Sequence[int]) -> None:
        """first: position of the answer's first token."""
        self.words |= dict(enumerate(answer, start=first))

    def __call__(self, inputs: Any, into: Any = None) -> Any:
        positions = np.asarray(inputs["position_ids"])[0]
        self.reading(int(positions[0]))
        out = dict(self.engine(inputs, into))
        logits = np.array(out["logits"])
        for row, position in enumerate(positions[np.asarray(inputs["logit_rows"])]):
            if position + 1 in self.words:
                logits[0, row] = 0
                logits[0, row, self.words[position + 1]] = 1
        return out | {"logits": logits}


def ids_of(seg: PixelLM, *parts: str | Sequence[int]) -> list[int]:
    """Words and token ids as ids."""
    ids: list[int] = []
    for part in parts:
        ids += seg.prompt.tokenizer.encode(part).ids if isinstance(part, str) else part
    return ids


def muted(seg: PixelLM) -> PixelLM:
    """A twin of `seg` that can be told what to say, and says it word by word."""
    twin: Any = copy.copy(seg)
    twin._language, twin.drafts, twin.prefixes = Forced(seg._language), None, None
    return twin


def first_position(seg: PixelLM, question: str) -> int:
    """Of the answer."""
    return len(seg.check(question)) - 1 + seg.bundle.manifest["tokens"]["image_tokens"]


def forced(seg: PixelLM, question: str, *parts: str | Sequence[int], end: bool = True) -> PixelLM:
    """A twin of `seg` that answers `question` like this, then ends, or says its first word until it is stopped."""
    twin, answer = muted(seg), ids_of(seg, *parts)
    twin._language.say(first_position(seg, question), [*answer, *([seg.eos] if end else answer[:1] * 64)])
    return twin
