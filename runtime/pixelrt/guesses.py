"""Which answers are guessed, and how often each would be right.

Whether a thing is in the picture, and how often, nobody knows before the picture is read. So a question has several
likely answers; `worth_it` says which of them are read ahead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pixelrt.wording import Form, filled, matched, shows_each, slots

TREE = 64  # tokens of the drafts of a step together; of as many rows an engine is built to give logits
TOKEN_COST = 1 / 128  # time of one more token in a step that reads the weights anyway, in steps
LONGEST = 16  # tokens of a guess in the middle of an answer; a whole answer is drafted at its beginning
BEFORE = 4  # tokens of the answer, at most, that such a guess goes on from
WEIGHT = 4.0  # of one more of them
FAINT = 1e-3  # weight of a guess that goes on from none of them
BEGUN = 0.5  # of a step, saved by the right beginning of an answer that is read on in the next
FORESEEN = (
    2.0  # weight of what whole answers foresaw in the middle of one, beside what others say at such a place
)
HOPED = 2.0  # answers to a wording that have a mask for each name: such questions are about what is there
OTHERS = 1.0  # as many like those to other wordings with as many names, and again as many to vaguer wordings
GIVEN = 0.1  # as many of a shape that was given, not met


class Guess(NamedTuple):
    ids: Sequence[int]
    share: float  # of the cases in which it is right; of several guesses only their ratio counts


def worth_it(guesses: Iterable[Guess], token_cost: float) -> list[list[int]]:
    """The first guess, and each other that is right often enough for the tokens it adds; then beginnings of the rest.

    Where no guess goes on as the model does, the next one is made a step later. So a branch that is right saves a step,
    and one token more costs `token_cost` steps. Equal guesses count together, and so do equal beginnings.
    """
    children: dict[tuple[int, int], int] = {}
    ways: dict[tuple[int, ...], list[int]] = {}  # guess -> its nodes
    shares: Counter[int] = Counter()  # of what begins so, by node
    whole: Counter[tuple[int, ...]] = Counter()  # of a guess
    for ids, share in guesses:
        key, node = tuple(ids), -1
        if key not in ways:
            ways[key] = []
            for token in key:
                node = children.setdefault((node, token), len(children))
                ways[key].append(node)
        whole[key] += share  # type: ignore[assignment]
        for node in ways[key]:
            shares[node] += share  # type: ignore[assignment]
    found: list[list[int]] = []
    tree: set[int] = set()
    total = sum(whole.values())
    order = [*list(ways)[:1], *sorted(list(ways)[1:], key=whole.__getitem__, reverse=True)]

    def grow(key: tuple[int, ...], end: int) -> None:
        if not tree.issuperset(ways[key][:end]):
            found.append(list(key[:end]))
            tree.update(ways[key][:end])

    for key in order:
        new = len(ways[key]) - len(tree.intersection(ways[key]))
        if not found or (len(tree) + new <= TREE and whole[key] >= token_cost * new * total):
            grow(key, len(key))
            for node in ways[key]:
                shares[node] -= whole[key]
    for key in order:
        known = len(tree.intersection(ways[key]))
        end = min(len(key), known + TREE - len(tree))
        while end > known and BEGUN * shares[ways[key][end - 1]] < token_cost * (end - known) * total:
            end -= 1
        grow(key, end)
    return found


def likely(
    met: Mapping[Form, int],
    shown: Collection[tuple[int, ...]],
    question: Sequence[int],
    common: frozenset[int],
    seg: Sequence[int],
) -> list[Guess]:
    """Whole answers to a question. met: how often each form was. shown: names that had masks. Else as `form_of`.

    What the wording that says most about the question leaves open is left to the next one. The first guess has a mask
    for each name, for people ask for what they see, unless only other answers to this wording are known; the others are
    in no order.
    """
    shaped: Counter[tuple[int, ...]] = Counter()  # answers of a shape
    asked: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}  # answers to a wording
    for form, count in met.items():
        shaped[form.shape] += count
        asked.setdefault(form.wording, Counter())[form.shape] += count
    asked.setdefault((), Counter())
    found = [(wording, names) for wording in asked if (names := matched(wording, question)) is not None]

    def vague(each: tuple[tuple[int, ...], list[list[int]]]) -> tuple[bool, int, int, int]:
        words = [word for name in each[1] for word in name]
        return each[0] == (), sum(word in common for word in words), len(words), -asked[each[0]].total()

    guesses, first, left = list[Guess](), None, 1.0
    for wording, names in sorted(found, key=vague):
        own = asked[wording]
        others = {shape: count + GIVEN for shape, count in shaped.items() if slots(shape) == len(names)}
        each_shown = [shape for shape in others if names and shows_each(shape, len(names), seg[0])]
        hoped = max(each_shown, key=others.__getitem__, default=None)
        counts: dict[tuple[int, ...], float] = dict(own)
        if hoped:
            counts[hoped] = own[hoped] + HOPED
        all_of_others = sum(others.values())
        for shape, share in others.items():
            counts[shape] = counts.get(shape, 0.0) + OTHERS * share / all_of_others
        everything = sum(counts.values()) + OTHERS
        masked = any(seg[0] in shape for shape in own)
        inner = [within(name, shown) for name in names]
        for shape, expected in counts.items():
            fills = [names] if inner == names or seg[0] not in shape else [names, inner]
            share = left * expected / everything / len(fills)
            guesses += [Guess(filled(shape, fill), share) for fill in fills]
            if first is None and shape == hoped and (masked or own.total() <= HOPED):
                first = guesses[-1]
        left *= OTHERS / everything
    first = first or max(guesses, key=lambda guess: guess.share, default=None)
    return [] if first is None else [first, *guesses]


def scaled(guesses: list[Guess], total: float) -> list[Guess]:
    """The same with shares that add up to `total`."""
    factor = total / max(sum(guess.share for guess in guesses), 1e-9)
    return [Guess(ids, share * factor) for ids, share in guesses]


def within(name: list[int], shown: Collection[tuple[int, ...]]) -> list[int]:
    """The longest name with a mask inside a longer one ("red cup" in "red cup on the left"); else the name itself."""
    spans = [
        name[at : at + count] for count in range(len(name), 0, -1) for at in range(len(name) - count + 1)
    ]
    return next((span for span in spans if tuple(span) in shown), name)


def continued(ids: Sequence[int], texts: Iterable[tuple[str, float]]) -> Iterator[Guess]:
    """How an answer goes on that nobody foresaw: as texts (see `as_text`) do where its last tokens stand in them.

    The more tokens, the more that says (prompt lookup; an n-gram model, backing off).
    """
    texts, told = list(texts), False
    for count in range(min(BEFORE, len(ids)), 0, -1):
        last = as_text(ids[-count:])
        for text, share in texts:
            at = text.find(last)
            while at >= 0:
                rest = text[at + count : at + count + LONGEST]
                if rest:
                    told = True
                    yield Guess([ord(token) for token in rest], FAINT * WEIGHT**count * share)
                at = text.find(last, at + 1)
        if told and count <= BEFORE // 2:
            return


def as_text(ids: Iterable[int]) -> str:
    """Token ids as characters, as Python searches in texts fast."""
    return "".join(map(chr, ids))
