"""What an answer will probably be, from the answers to questions like it.

A language model checks a drafted answer in one step, where it would write it in as many steps as it has tokens. What
the model does not choose itself is thrown away, so that a draft costs or saves time and changes nothing.

All lists are token ids: questions are the prompt behind the image, answers end with the end-of-text token.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, groupby

from pixelrt.generate import Codebook

KEPT = 64  # examples
COMPARED = 8  # examples that are aligned with a question, of those that look most like it
LONGEST = 16  # tokens drafted in the middle of an answer; a whole answer is drafted once, at its beginning
WORDS = 2  # tokens of the answer that must stand in the question for it to be continued like that


@dataclass
class Example:
    """A question and its answer. hits: questions for which the answer was drafted from this one and was right."""

    question: list[int]
    answer: list[int]
    hits: int = 0


class Drafts:
    """Examples to draft answers from: those given, then the ones met. May be shared by threads."""

    def __init__(self, codebook: Codebook, examples: Sequence[Example] = ()) -> None:
        self.codebook, self.examples = codebook, list(examples)
        self._lock = threading.Lock()

    def of(self, question: Sequence[int]) -> Draft:
        with self._lock:
            likest = nearest(self.examples, question)
        whole = rewritten(likest, question) if likest else []
        return Draft(list(question), whole, self.codebook, likest)

    def learn(self, draft: Draft, answer: Sequence[int]) -> None:
        """Remember what came of a draft. An answer that was drafted right needs no example of its own."""
        with self._lock:
            if draft.example is not None and draft.whole == list(answer):
                draft.example.hits += 1
            else:
                self.examples.append(Example(draft.question, list(answer)))
            if len(self.examples) > KEPT:  # of those never used the oldest; the newest has had no chance yet
                self.examples.remove(min(self.examples[:-1], key=lambda example: example.hits))


@dataclass(frozen=True)
class Draft:
    """A drafter for `pixelrt.generate.generate`. whole: the answer expected; example: what it was made from."""

    question: list[int]
    whole: list[int]
    codebook: Codebook
    example: Example | None = None

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Tokens that may follow the answer's first `ids`."""
        if not ids:
            return self.whole
        if ids[-1] in self.codebook.ids[:-1]:
            return list(self.codebook.ids[self.codebook.ids.index(ids[-1]) + 1 :])
        return (
            followers(self.whole, ids[-WORDS:])
            or followers(self.whole, ids[-1:])
            or followers(self.question, ids[-WORDS:])
        )[:LONGEST]


def followers(text: Sequence[int], words: Sequence[int]) -> list[int]:
    """What follows the last place where `words` stand in `text`; empty where they do not (prompt lookup)."""
    count = len(words)
    for at in range(len(text) - count, -1, -1):
        if list(text[at : at + count]) == list(words):
            return list(text[at + count :])
    return []


def nearest(examples: Sequence[Example], question: Sequence[int]) -> Example | None:
    """The example whose question becomes this one by exchanging the fewest words for as many others."""
    words = set(question)

    def looks(example: Example) -> tuple[int, int]:
        return abs(len(example.question) - len(question)), -len(words & set(example.question))

    def distance(example: Example) -> tuple[int, int, int]:
        changes = _changes(example.question, question)
        longer = sum(abs(len(old) - len(new)) for old, new in changes)
        return longer, sum(len(old) for old, _ in changes), -example.hits

    return min(sorted(examples, key=looks)[:COMPARED], key=distance, default=None)


def rewritten(example: Example, question: Sequence[int]) -> list[int]:
    """The example's answer with each word exchanged as it was exchanged between the questions.

    Words that stand in both answer and question are taken to stand in the same order.
    """
    answer, at = list(example.answer), 0
    for old, new in _changes(example.question, question):
        place = next((i for i in range(at, len(answer)) if old and answer[i : i + len(old)] == old), None)
        if place is not None:
            answer[place : place + len(old)] = new
            at = place + len(new)
    return answer


def _changes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """(tokens of old, tokens of new in their place), left to right."""
    if len(old) == len(new):  # place by place: an alignment would follow a name from one place to another
        places = [a == b for a, b in zip(old, new, strict=True)]
        runs = [(same, len(list(run))) for same, run in groupby(places)]
        ends = list(accumulate(count for _, count in runs))
        parts = [(same, end - count, end) for (same, count), end in zip(runs, ends, strict=True)]
        return [(list(old[a:b]), list(new[a:b])) for same, a, b in parts if not same]
    codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(list(old[a:b]), list(new[c:d])) for kind, a, b, c, d in codes if kind != "equal"]
