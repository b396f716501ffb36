"""Greedy decoding that keeps, for every codebook token, the hidden state that predicted it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pixelrt.draft_tree import ROOT, Tree, straight
from pixelrt.engine import Array, Joined
from pixelrt.errors import InputError
from pixelrt.language import Context, Rows
from pixelrt.tokens import TokenTable

SEG_RUNS = ("complete", "original")
# From the ids of an answer so far, drafts of those that may follow, the likeliest first.
Drafter = Callable[[Sequence[int]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Codebook:
    """The codebook ids of one target in their fixed order: scale by scale, token by token."""

    ids: tuple[int, ...]

    @property
    def run(self) -> int:
        return len(self.ids)


@dataclass
class Generation:
    """Generated ids and the hidden states (H,) that predicted codebook tokens, prompt's first."""

    token_ids: list[int] = field(default_factory=list)
    seg_hidden: list[Array] = field(default_factory=list)
    finished: bool = False  # the model ended its answer itself
    forwards: int = 0  # runs of the language graph
    drafted: int = 0  # tokens that were read before the model had chosen them
    refused: int = 0  # of those, tokens that it did not choose

    def targets(self, codebook: Codebook) -> Array | None:
        """Hidden states (N, run, H), or None where there is no target.

        The original's rule: a number of codebook tokens that is no multiple of a run drops every mask.
        """
        count = len(self.seg_hidden)
        if count == 0 or count % codebook.run:
            return None
        return np.stack(self.seg_hidden).reshape(count // codebook.run, codebook.run, -1)

    def run_starts(self, codebook: Codebook) -> list[int | None]:
        """For each target where its run begins in token_ids; None for one of the prompt, or one in pieces."""
        own = [i for i, token in enumerate(self.token_ids) if token in codebook.ids]
        hits: list[int | None] = [None] * (len(self.seg_hidden) - len(own)) + own
        starts = []
        for i in range(0, len(hits), codebook.run):
            first = hits[i]
            whole = first is not None and hits[i : i + codebook.run] == list(
                range(first, first + codebook.run)
            )
            starts.append(first if whole else None)
        return starts


def check_settings(max_new_tokens: int, seg_runs: str) -> None:
    """Raises InputError for settings that `generate` cannot take."""
    if seg_runs not in SEG_RUNS:
        raise InputError(f"seg_runs is {seg_runs!r}. Choose one of: {', '.join(SEG_RUNS)}.")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}. Give a whole number, 1 or more.")


def check_prompted(count: int, codebook: Codebook, seg_runs: str) -> None:
    """Raises InputError for a prompt with `count` codebook tokens that `complete` runs cannot be made of."""
    if seg_runs == "complete" and count % codebook.run:
        raise InputError(
            f"The prompt holds {count} codebook tokens, which is no multiple of {codebook.run}. "
            "Write each target's tokens in full."
        )


def prompt_rows(ids: Sequence[int], first: int, codebook: Codebook) -> list[int]:
    """Rows whose hidden states predict the codebook tokens inside a prompt.

    ids: the text after the image; first: position of ids[0]. A token at position p is predicted by row p - 1.
    """
    return [first + i - 1 for i, token in enumerate(ids) if token in codebook.ids]


def no_drafts(ids: Sequence[int]) -> list[list[int]]:
    return []


def generate(
    context: Context,
    table: TokenTable,
    prefill: Array | Joined,
    visible: Array,
    seg_rows: Sequence[int],
    codebook: Codebook,
    *,
    eos: int,
    max_new_tokens: int,
    seg_runs: str,
    drafter: Drafter = no_drafts,
) -> Iterator[Generation]:
    """Read the prompt and decode greedily until eos or max_new_tokens; gives the same Generation after each token.

    prefill (L, H), visible (L,): the prompt's embeddings and key mask, or what of them the context has not read
    yet. seg_rows: see prompt_rows.
    seg_runs `complete`: a run of codebook tokens once begun is completed, in the codebook's order (so the answer
    can be up to run - 1 tokens longer than max_new_tokens); its tokens are known, so they are read in one step.
    `original`: every token is the model's own.
    drafter: its drafts are read in the same step, as a tree, and what the model would have chosen of one is kept: the
    answer is the same with any drafter (Leviathan et al. 2023, the greedy case). No more is read than the engine takes
    at once. What was right in a draft behind the first lies behind other tokens in the cache, so it is read again.
    """
    writing = Writing(
        table,
        prefill,
        visible,
        seg_rows,
        codebook,
        eos=eos,
        max_new_tokens=max_new_tokens,
        seg_runs=seg_runs,
        drafter=drafter,
    )
    before = context.forwards
    while not writing.over:
        count = len(writing.must)
        again = context.can_append(writing.tree.depth + 1, context.length + count)
        wanted = min(
            len(writing.draft) if again else writing.trunk, context.capacity - context.length - count
        )
        found = context(*writing.reading(context.room(wanted, count, len(writing.rows))), writing.tree.sees())
        writing.result.forwards = context.forwards - before
        yield from writing.take(found)
        context.rewind(context.length - writing.refused)


class Writing:
    """One answer being written: what it wants read next, and what it makes of what the model says about that.

    `must` (S, H) has to be read, with logits of its `rows`; `draft`, token ids, as far as there is room. Then
    `reading` what is read, `take` what came of it, and drop the last `refused` tokens from the cache; until `over`. The
    last tokens of what is read are those of `tree`, which look at each other as it says.
    """

    def __init__(
        self,
        table: TokenTable,
        prefill: Array | Joined,
        visible: Array,
        seg_rows: Sequence[int],
        codebook: Codebook,
        *,
        eos: int,
        max_new_tokens: int,
        seg_runs: str,
        drafter: Drafter = no_drafts,
    ) -> None:
        """See `generate`."""
        check_prompted(len(seg_rows), codebook, seg_runs)
        self.table, self.codebook, self.drafter = table, codebook, drafter
        self.eos, self.max_new_tokens, self.complete = eos, max_new_tokens, seg_runs == "complete"
        self.result = Generation()
        self.must, self.visible = prefill, visible
        self.rows = [*seg_rows, len(prefill) - 1]
        self.tree = Tree(drafter([]), max_new_tokens - 1)
        self.refused = 0  # tokens at the end of what was read last that are no part of the answer
        self.over = False
        self._prompted = len(seg_rows)  # rows before the one that predicts the next token
        self._begun: list[int] = []  # the rest of a run, which follows whatever the model says
        self._certain = 0  # tokens of the tree, its first, that are in `must`

    @property
    def draft(self) -> list[int]:
        return self.tree.tokens[self._certain :]

    @property
    def trunk(self) -> int:
        """Tokens of the first draft."""
        return self.tree.trunk - self._certain

    @property
    def reserve(self) -> int:
        """Tokens of cache that it may still need, those of refused drafts not counted."""
        return len(self.must) + self.max_new_tokens - len(self.result.token_ids) + self.codebook.run - 1

    def reading(self, drafted: int) -> tuple[Array | Joined, list[int], Array]:
        """Embeddings, rows and key mask of what is read, the first `drafted` tokens of the draft among it."""
        self.tree.cut(self._certain + drafted)
        draft = self.draft
        self.result.drafted += len(draft)
        count = len(self.must)
        return (
            _followed(self.must, self.table(draft)) if draft else self.must,
            [*self.rows, *range(count, count + len(draft))],
            np.concatenate([self.visible, np.ones(len(draft), np.bool_)]),
        )

    def take(self, found: Rows) -> Iterator[Generation]:
        """found: of the rows that `reading` named. Gives the same Generation after each token of the answer."""
        result, codebook = self.result, self.codebook
        result.seg_hidden.extend(found.hidden[: self._prompted])
        root, self._prompted = self._prompted, 0  # the row before the tree
        way: list[int] = []  # nodes of it that the model chose
        while True:
            at = root + 1 + (way[-1] if way else ROOT)
            own = not self._begun
            token = _chosen(found.logits[at]) if own else self._begun.pop(0)
            if token in codebook.ids:
                result.seg_hidden.append(found.hidden[at])
                if self.complete and own:
                    token, *self._begun = codebook.ids
            result.token_ids.append(token)
            result.finished = token == self.eos
            yield result
            left = max(self.max_new_tokens - len(result.token_ids), len(self._begun))
            node = self.tree.child(way[-1] if way else ROOT, token)
            if node is not None:
                way.append(node)
            if result.finished or not left or node is None:
                break
        result.refused += len(self.tree) - len(way)
        kept = straight(way)
        self.refused = len(self.tree) - kept
        self.over = result.finished or not left
        if not self.over:
            self._go_on(result.token_ids[len(result.token_ids) - 1 - len(way) + kept :], left)

    def _go_on(self, unread: list[int], left: int) -> None:
        """Ask for chosen tokens to be read, with what surely follows them, and a draft of what may."""
        # The last token of an answer is not read: nothing follows it.
        certain = self._begun[: left - 1]
        self.must = self.table([*unread, *certain])
        self.rows = list(range(len(unread) - 1, len(self.must)))
        self.visible = np.ones(len(self.must), np.bool_)
        drafts = self.drafter([*self.result.token_ids, *self._begun])
        self.tree = Tree([[*self._begun, *draft] for draft in drafts] or [certain], left - 1)
        self._certain = len(certain)


def _followed(rows: Array | Joined, more: Array) -> Array | Joined:
    return Joined((*rows.parts, more)) if isinstance(rows, Joined) else np.concatenate([rows, more])


def _chosen(logits: Array) -> int:
    if not np.isfinite(logits).all():
        raise ArithmeticError("the language model's logits are not finite: use a bundle of higher precision")
    return int(logits.argmax())  # the first of equals, as torch
