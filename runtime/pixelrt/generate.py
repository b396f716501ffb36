"""Greedy decoding that keeps, for every codebook token, the hidden state that predicted it."""

from __future__ import annotations

from collections.abc import Sequence
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
) -> Generation:
    """Read the prompt and decode greedily until eos or max_new_tokens.

    prefill (L, H), visible (L,): the prompt's embeddings and key mask. seg_rows: see prompt_rows.
    seg_runs `complete`: a run of codebook tokens once begun is completed, in the codebook's order (so the answer
    can be up to run - 1 tokens longer than max_new_tokens); its tokens are known, so they are read in one step.
    `original`: every token is the model's own.
    """
    complete = seg_runs == "complete"
    check_prompted(len(seg_rows), codebook, seg_runs)
    result = Generation()
    rows = context(prefill, [*seg_rows, len(prefill) - 1], visible)
    result.seg_hidden.extend(rows.hidden[:-1])
    while True:
        if not np.isfinite(rows.logits[-1]).all():
            raise ArithmeticError(
                "the language model's logits are not finite: use a bundle of higher precision"
            )
        token = int(rows.logits[-1].argmax())  # the first of equals, as torch
        run = complete and token in codebook.ids
        step = list(codebook.ids) if run else [token]
        result.token_ids.extend(step)
        if token in codebook.ids:
            result.seg_hidden.append(rows.hidden[-1])
        result.finished = token == eos
        last = result.finished or len(result.token_ids) >= max_new_tokens
        if last:
            step.pop()  # nothing follows the last token, so it is not read
        if step:
            rows = context(table(step), range(len(step)))
        if run:
            result.seg_hidden.extend(rows.hidden[: codebook.run - 1])
        if last:
            return result
