"""Several prompts in one cache, each as if it were alone.

    beginning ── question 1        head ── picture 1 ── question
             └── question 2            └── picture 2 ── question

The language graph reads them one behind the other, as one sequence (B = 1). What makes prompts of it are the positions,
which go on from where a branch begins, and the attention mask: a token looks at its own branch and at what that begins
with. So no prompt is padded to another's length, what they share lies in the cache once, each drafts as much as it
likes, and an engine needs no batch in its profiles. Masked tokens add exact zeros; a sum with them may be added up in
another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pixelrt.engine import Array, Engine, Joined, Value
from pixelrt.generate import Writing
from pixelrt.language import Context, Rows

GROWTH = 64  # tokens that a cache grows by for each branch, as growing copies it


@dataclass(frozen=True)
class Part:
    """What is read of a branch: embeddings (S, H); `rows` of these get logits; visible (S,) as in `Context`."""

    branch: int
    embeddings: Array | Joined
    rows: Sequence[int] = ()
    visible: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Line:
    """Parts one behind the other, without the tokens that nobody looks at where the context skips those."""

    embeddings: Joined  # (S, H)
    branch: npt.NDArray[np.int64]  # (S,)
    places: npt.NDArray[np.int64]  # (S,) positions
    visible: npt.NDArray[np.bool_]  # (S,)
    wanted: npt.NDArray[np.bool_]  # (S,) rows that get logits

    def __len__(self) -> int:
        return len(self.branch)


class Branches:
    """For one thread."""

    def __init__(self, context: Context) -> None:
        """context: what it holds is of branch 0, which all others begin with."""
        self.context = context
        self.position = [context.position]  # of the next token of each branch
        self._sees = np.ones((1, 1), np.bool_)  # [a, b]: tokens of branch a look at those of b
        self._branch = np.zeros(context.capacity, np.int64)  # of each token in the cache

    def open(self, position: int, parent: int = 0) -> int:
        """A new branch behind all of `parent`; position: of its first token."""
        count = len(self.position)
        self._sees = np.pad(self._sees, ((0, 1), (0, 1)))
        self._sees[count] = self._sees[parent]
        self._sees[count, count] = True
        self.position.append(position)
        return count

    def read(self, parts: Sequence[Part]) -> list[Rows]:
        """Append all parts, in as few passes as the engine allows; what the model says about the rows of each."""
        line = self.line(parts)
        memory = self.context.engine.memory
        tokens, rows = memory.most("inputs_embeds", 1) or len(line), memory.most("logit_rows", 0) or len(line)
        logits, hidden = [], []
        start = 0
        while start < len(line):
            stop = min(start + tokens, len(line))
            asked = np.flatnonzero(line.wanted[start:stop])
            if len(asked) > rows:
                stop = start + int(asked[rows])
                asked = asked[:rows]
            # Nothing is asked of a pass that only fills the cache; its last row is, for a graph needs one.
            logit_rows = asked if len(asked) else np.array([stop - start - 1], np.int64)
            found = self.run(line, start, stop, {"logit_rows": logit_rows})
            logits.append(np.asarray(found["logits"])[0][: len(asked)])
            hidden.append(np.asarray(found["hidden"])[0][: len(asked)])
            start = stop
        cuts = np.cumsum([len(part.rows) for part in parts])[:-1]
        pairs = zip(
            np.split(np.concatenate(logits), cuts), np.split(np.concatenate(hidden), cuts), strict=True
        )
        return [Rows(*pair) for pair in pairs]

    def line(self, parts: Sequence[Part]) -> Line:
        """The positions that the parts take are theirs from now on."""
        lengths = [len(part.embeddings) for part in parts]
        places, visible, wanted = [], [], []
        for part, length in zip(parts, lengths, strict=True):
            first = self.position[part.branch]
            self.position[part.branch] = first + length
            places.append(np.arange(first, first + length))
            visible.append(np.ones(length, np.bool_) if part.visible is None else part.visible)
            asked = np.zeros(length, np.bool_)
            asked[list(part.rows)] = True
            wanted.append(asked)
        branch = np.repeat(np.array([part.branch for part in parts], np.int64), lengths)
        shown, logits = np.concatenate(visible), np.concatenate(wanted)
        kept = np.flatnonzero(shown | logits) if self.context.skips else np.arange(len(shown))
        values: list[Value] = []
        for part in parts:
            values += part.embeddings.parts if isinstance(part.embeddings, Joined) else (part.embeddings,)
        return Line(
            Joined(tuple(values)).taken(kept),
            branch[kept],
            np.concatenate(places)[kept],
            shown[kept],
            logits[kept],
        )

    def run(self, line: Line, start: int, stop: int, asked: Mapping[str, Array]) -> dict[str, Value]:
        """One pass of the graph over tokens start..stop of a line; see `Context.read`."""
        context = self.context
        first, last = context.length, context.length + stop - start
        if last > context.capacity and context.grows:
            context.rewind(first, last + GROWTH * len(self.position))
        self._branch = np.pad(self._branch, (0, max(0, context.capacity - len(self._branch))))
        self._branch[first:last] = line.branch[start:stop]
        return context.read(
            line.embeddings.rows(start, stop),
            asked,
            line.visible[start:stop],
            line.places[start:stop],
            self._sees[line.branch[start:stop]][:, self._branch[:last]],
        )

    def forget(self, branch: int, count: int) -> None:
        """Take back the last tokens of a branch. Behind others they stay in the cache, and nothing looks at them."""
        if not count:
            return
        context = self.context
        own = np.flatnonzero((self._branch[: context.length] == branch) & context.visible[: context.length])
        context.visible[own[-count:]] = False
        self.position[branch] -= count
        seen = np.flatnonzero(context.visible[: context.length])
        context.rewind(int(seen[-1]) + 1 if len(seen) else 0)


def generate_together(
    branches: Branches, writings: Mapping[int, Writing], before: Sequence[Part] = ()
) -> Iterator[list[int]]:
    """`generate` for several answers: each pass of the model reads for all that are not over. Gives their branches.

    writings: by branch. before: what is to be read of the branches that they begin with. All branches must fit into
    a cache of fixed length with what their answers `reserve`.
    """
    context = branches.context
    while going := {branch: writing for branch, writing in writings.items() if not writing.over}:
        drafted = _shared(context, before, list(going.values()))
        reads = [writing.reading(count) for writing, count in zip(going.values(), drafted, strict=True)]
        parts = [Part(branch, *read) for branch, read in zip(going, reads, strict=True)]
        earlier = context.forwards
        found = branches.read([*before, *parts])[len(before) :]
        before = ()
        for (branch, writing), rows in zip(going.items(), found, strict=True):
            writing.result.forwards += context.forwards - earlier
            for _ in writing.take(rows):
                pass
            branches.forget(branch, writing.refused)
        yield list(going)


def _shared(context: Context, before: Sequence[Part], writings: Sequence[Writing]) -> list[int]:
    """How much of its draft each may read: what the engine takes at once, and what a cache of fixed length has left
    for tokens that may be refused."""
    wanted = [len(writing.draft) for writing in writings]
    must = sum(len(part.embeddings) for part in before) + sum(len(writing.must) for writing in writings)
    free = context.room(sum(wanted), must, sum(len(writing.rows) for writing in writings))
    if not context.grows:
        kept = sum(len(part.embeddings) for part in before) + sum(writing.reserve for writing in writings)
        free = min(free, context.capacity - context.length - kept)
    given = []
    for count in wanted:
        given.append(max(0, min(count, free)))
        free -= given[-1]
    return given


def together(engine: Engine) -> bool:
    """Whether the engine goes on behind a cache of any length. One with a cache that grows may not: TensorRT wants the
    ends of a profile to add up, so that one for long prompts begins with an empty cache."""
    return engine.file.cache == "in_place" or engine.memory.most("inputs_embeds", 1) is None
