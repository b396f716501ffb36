"""Greedy decoding that keeps, for every codebook token, the hidden state that predicted it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pixelrt.engine import Array, Joined
from pixelrt.errors import InputError
from pixelrt.language import Context
from pixelrt.tokens import TokenTable

SEG_RUNS = ("complete", "original")


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


def no_drafts(ids: Sequence[int]) -> list[int]:
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
    drafter: Callable[[Sequence[int]], list[int]] = no_drafts,
) -> Iterator[Generation]:
    """Read the prompt and decode greedily until eos or max_new_tokens; gives the same Generation after each token.

    prefill (L, H), visible (L,): the prompt's embeddings and key mask, or what of them the context has not read
    yet. seg_rows: see prompt_rows.
    seg_runs `complete`: a run of codebook tokens once begun is completed, in the codebook's order (so the answer
    can be up to run - 1 tokens longer than max_new_tokens); its tokens are known, so they are read in one step.
    `original`: every token is the model's own.
    drafter: from the ids of the answer so far, those that may follow. They are read in the same step, and the part
    of them is kept that the model would have chosen: the answer is the same with any drafter (Leviathan et al. 2023,
    the greedy case). No more are read than the engine takes at once.
    """
    complete = seg_runs == "complete"
    check_prompted(len(seg_rows), codebook, seg_runs)
    result, before = Generation(), context.forwards
    begun: list[int] = []  # the rest of a run, which follows whatever the model says
    ahead = drafter([])[: max_new_tokens - 1]  # read already; right as far as the model chooses the same
    ahead = ahead[: context.room(len(ahead), len(prefill), len(seg_rows) + 1)]
    result.drafted += len(ahead)
    rows = context(
        _followed(prefill, table(ahead)) if ahead else prefill,
        [*seg_rows, *range(len(prefill) - 1, len(prefill) + len(ahead))],
        np.concatenate([visible, np.ones(len(ahead), np.bool_)]),
    )
    result.seg_hidden.extend(rows.hidden[: len(seg_rows)])
    at = len(seg_rows)  # the row that predicts the next token
    while True:
        own = not begun
        token = _chosen(rows.logits[at]) if own else begun.pop(0)
        if token in codebook.ids:
            result.seg_hidden.append(rows.hidden[at])
            if complete and own:
                token, *begun = codebook.ids
        result.token_ids.append(token)
        result.finished, result.forwards = token == eos, context.forwards - before
        yield result
        left = max(max_new_tokens - len(result.token_ids), len(begun))
        if not result.finished and left and ahead[:1] == [token]:
            ahead, at = ahead[1:], at + 1
            continue
        result.refused += len(ahead) - (ahead[:1] == [token])
        context.rewind(context.length - len(ahead))
        if result.finished or not left:
            return
        # The last token of an answer is not read: nothing follows it.
        drafted = drafter([*result.token_ids, *begun])[: max(0, left - 1 - len(begun))]
        drafted = drafted[: context.room(len(drafted), 1 + len(begun), 1 + len(begun))]
        result.drafted += len(drafted)
        ahead = [*begun, *drafted][: left - 1]
        rows, at = context(table([token, *ahead]), range(1 + len(ahead))), 0


def _followed(rows: Array | Joined, more: Array) -> Array | Joined:
    return Joined((*rows.parts, more)) if isinstance(rows, Joined) else np.concatenate([rows, more])


def _chosen(logits: Array) -> int:
    if not np.isfinite(logits).all():
        raise ArithmeticError("the language model's logits are not finite: use a bundle of higher precision")
    return int(logits.argmax())  # the first of equals, as torch
