"""Questions and answers with the names cut out.

    Segment the [red circle].  ->  Sure, the [red circle] S0 S1 S2 S3 S4 S5.
    wording: Segment the -1 .      shape: Sure , the -1 S0 S1 S2 S3 S4 S5 . END

All are lists of token ids; -1, -2, ... are the names, in the order of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Form(NamedTuple):
    wording: tuple[int, ...]  # of the question
    shape: tuple[int, ...]  # of the answer


def form_of(
    question: Sequence[int], answer: Sequence[int], common: frozenset[int], seg: Sequence[int]
) -> Form:
    """A name is what stands in the question and, in the answer, right before a mask or at the end of a sentence.

    common: words that no name begins or ends with. seg: the codebook ids of one mask.
    """
    stops: dict[int, int] = {}  # where a name ends in the answer -> where it ends in the question
    starts: dict[int, int] = {}  # its end in the question -> its beginning there
    for end, token in enumerate(answer):
        if token == seg[0] or token in answer[-2:]:
            lengths = range(end, 0, -1)
            count = next((n for n in lengths if place_of(answer[end - n : end], question) is not None), 0)
            at = place_of(answer[end - count : end], question)
            if at is not None and count and answer[end - 1] not in common:
                stops[end] = at + count
                starts[at + count] = max(at, starts.get(at + count, 0))
    before = -1
    for stop in sorted(starts):
        start = max(starts[stop], before + 1)  # a word between two names belongs to neither
        while start < stop and question[start] in common:
            start += 1
        starts[stop], before = start, stop
    names = sorted((start, stop) for stop, start in starts.items() if start < stop)
    wording, shape = list(question), list(answer)
    for number, (start, stop) in reversed(list(enumerate(names, start=1))):
        wording[start:stop] = [-number]
    for end in sorted(stops, reverse=True):
        name = starts[stops[end]], stops[end]
        if name in names:
            shape[end - (name[1] - name[0]) : end] = [-1 - names.index(name)]
    return Form(tuple(wording), tuple(shape))


def matched(wording: Sequence[int], question: Sequence[int]) -> list[list[int]] | None:
    """The names of a question in this wording; None where it has another. No wording is in every question."""
    if not wording:
        return []
    names: list[list[int]] = []
    at, i = 0, 0
    while i < len(wording):
        if wording[i] >= 0:
            if at >= len(question) or question[at] != wording[i]:
                return None
            at, i = at + 1, i + 1
            continue
        stop = next((n for n in range(i + 1, len(wording)) if wording[n] < 0), len(wording))
        after = list(wording[i + 1 : stop])
        if stop == len(wording):
            end = len(question) - len(after)
            if list(question[end:]) != after:
                return None
        else:
            ends = range(at + 1, len(question) - len(after) + 1)
            end = next((n for n in ends if list(question[n : n + len(after)]) == after), -1)
        if end <= at:
            return None
        names.append(list(question[at:end]))
        at, i = end + len(after), stop
    return names if at == len(question) else None


def slots(shape: Sequence[int]) -> int:
    """How many names it wants."""
    return -min(0, *shape, 0)


def filled(shape: Sequence[int], names: Sequence[Sequence[int]]) -> list[int]:
    """The answer with these names."""
    return [word for token in shape for word in (names[-1 - token] if token < 0 else (token,))]


def shows_each(shape: Sequence[int], names: int, first: int) -> bool:
    """Whether it has one mask for each name, right behind it, and no other. first: codebook id that begins a mask."""
    before = [shape[at - 1] if at else 0 for at, token in enumerate(shape) if token == first]
    return before == [-1 - name for name in range(names)]


def shown(answer: Sequence[int], common: frozenset[int], first: int) -> frozenset[tuple[int, ...]]:
    """The words before each mask, back to a common one."""
    found = set()
    for end, token in enumerate(answer):
        if token == first:
            start = next((at for at in range(end, 0, -1) if answer[at - 1] in common), end)
            found.add(tuple(answer[start:end]))
    return frozenset(found - {()})


def place_of(words: Sequence[int], text: Sequence[int]) -> int | None:
    """Where `words` stand last in `text`."""
    words, count = list(words), len(words)
    return next((n for n in range(len(text) - count, -1, -1) if list(text[n : n + count]) == words), None)
