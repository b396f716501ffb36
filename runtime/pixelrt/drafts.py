"""What an answer will probably be, from the answers to questions like it.

A language model checks a drafted answer in one step, where it would write it in as many steps as it has tokens. What
the model does not choose itself is thrown away, so that a draft costs or saves time and changes nothing.

All lists are token ids: questions are the prompt behind the image, answers end with the end-of-text token.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixelrt.generate import Codebook
from pixelrt.wording import Form, filled, form_of, matched, place_of, slots

KEPT = 256  # examples
LONGEST = 16  # tokens drafted in the middle of an answer; a whole answer is drafted once, at its beginning
WORDS = 2  # tokens of the answer that stand in the question, for it to be continued like that
TRIED = 3  # answers without a mask, until one is no longer expected of a question in that wording
COMMON = 0.5  # of the questions hold a word that is no name


@dataclass
class Example:
    """A question and its answer. No question: a wording that answers often have. met: answers that had this form."""

    question: list[int]
    answer: list[int]
    met: int = 0


class Drafts:
    """Examples to draft answers from: those given, then the ones met. May be shared by threads.

    learning: whether answers become examples. Neither this nor the examples change an answer.
    """

    def __init__(self, codebook: Codebook, examples: Sequence[Example] = (), learning: bool = True) -> None:
        self.codebook, self.learning = codebook, learning
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
        known = tuple(example.answer for example in reversed(forms.values()))
        return Draft(
            list(question), self.codebook, tuple(likely(forms, question, common, self.codebook)), known
        )

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
            self._forms[form] = Example(example.question, example.answer, met + example.met)


@dataclass(frozen=True)
class Draft:
    """A drafter for `pixelrt.generate.generate`. likely: whole answers, the likeliest first; known: of any question."""

    question: list[int]
    codebook: Codebook
    likely: tuple[list[int], ...] = ()
    known: tuple[list[int], ...] = ()

    @property
    def whole(self) -> list[int]:
        return self.likely[0] if self.likely else []

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Tokens that may follow the answer's first `ids`."""
        if not ids:
            return self.whole
        if ids[-1] in self.codebook.ids[:-1]:
            return list(self.codebook.ids[self.codebook.ids.index(ids[-1]) + 1 :])
        return next((found for found in self._guesses(list(ids)) if found), [])[:LONGEST]

    def _guesses(self, ids: list[int]) -> Iterator[list[int]]:
        yield from (answer[len(ids) :] for answer in self.likely if answer[: len(ids)] == ids)
        yield followers(self.whole, ids[-WORDS:])
        yield followers(self.question, ids[-WORDS:])
        yield from (answer[len(ids) :] for answer in self.known if answer[: len(ids)] == ids)
        yield self.whole[len(ids) :]  # as if words were exchanged for as many others


def followers(text: Sequence[int], words: Sequence[int]) -> list[int]:
    """What follows the last place where `words` stand in `text`; empty where they do not (prompt lookup)."""
    at = place_of(words, text)
    return [] if at is None else list(text[at + len(words) :])


def likely(
    forms: Mapping[Form, Example], question: Sequence[int], common: frozenset[int], codebook: Codebook
) -> list[list[int]]:
    """Answers to the question, the likeliest first: in the forms that are met with its wording, or with another.

    Whether a thing is there, and how often, nobody knows before the picture is read. First comes the answer that has
    a mask for each name, once: it saves most if it is right.
    """
    met: Counter[tuple[int, ...]] = Counter()  # answers of a shape
    asked: Counter[tuple[int, ...]] = Counter()  # answers to a wording
    masked: set[tuple[int, ...]] = {()}  # wordings that were answered with a mask
    for form, example in forms.items():
        met[form.shape] += example.met
        asked[form.wording] += example.met
        if codebook.ids[0] in form.shape:
            masked.add(form.wording)
    found = []
    for wording in dict.fromkeys([(), *asked]):
        names = matched(wording, question)
        if names is None:
            continue
        no_common = -sum(word in common for name in names for word in name)
        wants_mask = wording in masked or asked[wording] < TRIED
        for shape in met:
            here = forms.get(Form(wording, shape))
            if slots(shape) != len(names) and here is None:
                continue
            before = [
                shape[at - 1] if at else 0 for at, token in enumerate(shape) if token == codebook.ids[0]
            ]
            named = [token for token in before if token < 0]
            best = (
                wording != (),
                no_common,
                len(names),
                bool(before) == wants_mask,
                len(named) - len(before),
                len(set(named)) - len(named),
                len(named),
                here.met if here else -1,
                met[shape],
            )
            found.append((best, filled(shape, names)))
    return [answer for _, answer in sorted(found, key=lambda each: each[0], reverse=True)]
