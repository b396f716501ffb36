"""What an answer will probably be, from the answers to questions like it.

A language model checks drafted answers in one step, where it would write one in as many steps as it has tokens. What
the model does not choose itself is thrown away, so that drafts cost or save time and change nothing.

All lists are token ids: questions are the prompt behind the image, answers end with the end-of-text token.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pixelrt.generate import Codebook
from pixelrt.guesses import (
    FAINT,
    FORESEEN,
    GIVEN,
    LONGEST,
    TOKEN_COST,
    Guess,
    as_text,
    continued,
    likely,
    scaled,
    worth_it,
)
from pixelrt.wording import Form, form_of, shown

KEPT = 256  # examples
COMMON = 0.5  # of the questions hold a word that is no name


@dataclass
class Example:
    """A question and its answer. No question: a wording that answers often have. met: answers that had this form."""

    question: list[int]
    answer: list[int]
    met: int = 0
    shown: frozenset[tuple[int, ...]] = frozenset()  # names that have masks in the answer


class Drafts:
    """Examples to draft answers from: those given, then the ones met. May be shared by threads.

    learning: whether answers become examples. token_cost: see `pixelrt.guesses.worth_it`. None of this, nor the
    examples, changes an answer.
    """

    def __init__(self, codebook: Codebook, examples: Sequence[Example] = (), learning: bool = True) -> None:
        self.codebook, self.learning, self.token_cost = codebook, learning, TOKEN_COST
        self._lock = threading.Lock()
        self._held_by: Counter[int] = Counter()  # questions that hold a word
        self._asked = 0
        self._common: frozenset[int] = frozenset()
        self._forms: dict[Form, Example] = {}
        for example in examples:
            self._count(example.question)
        self._add([Example(example.question, example.answer, example.met) for example in examples])

    @property
    def examples(self) -> list[Example]:
        """One of each form, the one met last at the end."""
        with self._lock:
            return list(self._forms.values())

    def of(self, question: Sequence[int]) -> Draft:
        with self._lock:
            forms, common = dict(self._forms), self._common
        met = {form: example.met for form, example in forms.items()}
        names = frozenset[tuple[int, ...]]().union(*(example.shown for example in forms.values()))
        guesses = likely(met, names, question, common, self.codebook.ids)
        texts = tuple((as_text(example.answer), example.met + GIVEN) for example in forms.values())
        return Draft(list(question), self.codebook, tuple(guesses), texts, self.token_cost)

    def learn(self, draft: Draft, answer: Sequence[int]) -> None:
        """Remember what came of a draft."""
        if not self.learning:
            return
        with self._lock:
            before = self._common
            self._count(draft.question)
            if self._common != before:  # names are cut out of the examples in another way
                examples, self._forms = list(self._forms.values()), {}
                self._add(examples)
            self._add([Example(draft.question, list(answer), 1)])
            while len(self._forms) > KEPT:  # the oldest of those seldom met; the newest has had no chance yet
                least = min(list(self._forms)[:-1], key=lambda form: self._forms[form].met)
                del self._forms[least]

    def forget(self, question: Sequence[int]) -> None:
        """Drop what is known of exactly this question."""
        with self._lock:
            self._forms = {f: e for f, e in self._forms.items() if e.question != list(question)}

    def _count(self, question: Sequence[int]) -> None:
        if question:
            self._asked += 1
            self._held_by.update(set(question))
            self._common = frozenset(w for w, n in self._held_by.items() if n > COMMON * self._asked)

    def _add(self, examples: Sequence[Example]) -> None:
        for example in examples:
            form = form_of(example.question, example.answer, self._common, self.codebook.ids)
            met = self._forms.pop(form, Example([], [])).met
            names = shown(example.answer, self._common, self.codebook.ids[0])
            self._forms[form] = Example(example.question, example.answer, met + example.met, names)


@dataclass(frozen=True)
class Draft:
    """A drafter for `pixelrt.generate.generate`. likely: whole answers to the question; known: see `continued`."""

    question: list[int]
    codebook: Codebook
    likely: tuple[Guess, ...] = ()
    known: tuple[tuple[str, float], ...] = ()
    token_cost: float = TOKEN_COST

    def __call__(self, ids: Sequence[int]) -> list[list[int]]:
        """What may follow the answer's first `ids`, the likeliest first."""
        ids, seg = list(ids), self.codebook.ids
        if ids and ids[-1] in seg[:-1]:
            return [list(seg[seg.index(ids[-1]) + 1 :])]
        guesses = [Guess(g.ids[len(ids) :], g.share) for g in self.likely if g.ids[: len(ids)] == ids]
        if ids:
            best = self.likely[0].ids if self.likely else []
            texts = [*self.known, (as_text(self.question), 1.0), (as_text(best), 1.0)]
            guesses = [*scaled(guesses, FORESEEN), *scaled(list(continued(ids, texts)), 1.0)]
            # As if words were exchanged for as many others.
            guesses += [Guess(best[len(ids) :][:LONGEST], FAINT)]
            guesses.sort(key=lambda guess: guess.share, reverse=True)
        return worth_it(guesses, self.token_cost)

    def first(self, ids: Sequence[int]) -> list[list[int]]:
        """The likeliest alone."""
        return self(ids)[:1]
