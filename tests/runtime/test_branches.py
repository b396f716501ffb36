"""Several prompts in one cache: what is said of each is what is said of it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.branches import Branches, Part, generate_together, together
from pixelrt.bundle import GraphFile, Tensor
from pixelrt.engine import HostMemory
from pixelrt.generate import Codebook, Generation, Writing, generate, prompt_rows
from pixelrt.language import Context
from psalm_toy import WIDTH, Graph, adding_language

SEG = (90, 91, 92)
CODEBOOK = Codebook(SEG)
EOS = 2
WORDS = [*range(20, 40), *SEG, EOS]
PRIME = 251  # sums of a few thousand tokens stay whole numbers in float32


class Limits(HostMemory):
    """As of a TensorRT engine: tokens at once, rows of logits, tokens in the cache. None: any."""

    def __init__(self, tokens: int | None = None, rows: int | None = None, cache: int | None = None) -> None:
        super().__init__()
        self.limits = {("inputs_embeds", 1): tokens, ("logit_rows", 0): rows, ("past.0.key", 2): cache}

    def most(self, name: str, axis: int) -> int | None:
        return self.limits.get((name, axis))

    def takes(self, sizes: Mapping[tuple[str, int], int]) -> bool:
        return all(size <= (self.limits.get(place) or size) for place, size in sizes.items())


class Hash:
    """A language model whose next token hangs on every token that it may look at, and on where that stands."""

    def __init__(self, cache: str, memory: HostMemory | None = None) -> None:
        past = tuple(Tensor(f"past.0.{part}", "activations", ("B", 1, "P", 1)) for part in ("key", "value"))
        self.file = GraphFile(Path("none"), "float32", 24, cache, past, ())
        self.memory = memory or HostMemory()
        self.read: list[int] = []  # tokens of each pass

    def __call__(self, inputs: Mapping[str, Any], into: Any = None) -> dict[str, Any]:
        tokens = np.asarray(inputs["inputs_embeds"])[0, :, 0].astype(np.int64)
        count, rows = len(tokens), np.asarray(inputs["logit_rows"])
        assert self.memory.takes({("inputs_embeds", 1): count, ("logit_rows", 0): len(rows)})
        self.read.append(count)
        new = (tokens * 31 + inputs["position_ids"][0] * 17) % PRIME
        past = inputs["past.0.key"]
        if into:
            start = int(inputs["write_indices"][0])
            past[0, 0, start : start + count, 0] = new
            present = past
            seen = past[0, 0, : inputs["attn_mask"].shape[-1], 0]
        else:
            seen = np.concatenate([past[0, 0, :, 0], new.astype(np.float32)])
            present = seen[None, None, :, None]
        sums = inputs["attn_mask"][0, 0][rows].astype(np.int64) @ seen.astype(np.int64)
        logits = np.zeros((1, len(rows), 100), np.float32)
        for i, (own, last) in enumerate(zip(sums, tokens[rows], strict=True)):
            # A run of codebook tokens is mostly gone on with, so that answers have some.
            goes_on = last in SEG[:-1] and own % 4
            logits[0, i, last + 1 if goes_on else WORDS[own % len(WORDS)]] = 1
        hidden = np.repeat(sums[None, :, None], 4, axis=2).astype(np.float32)
        return {"logits": logits, "hidden": hidden, "present.0.key": present, "present.0.value": present}


def table(ids: Sequence[int]) -> np.ndarray:
    return np.repeat(np.asarray(ids, np.float32)[:, None], 4, axis=1)


def drafter_of(answer: Sequence[int], seed: int) -> Any:
    """Right drafts, wrong ones and half right ones."""
    rng = np.random.default_rng(seed)

    def drafter(ids: Sequence[int]) -> list[list[int]]:
        right = list(answer[len(ids) : len(ids) + int(rng.integers(0, 9))])
        wrong = [int(word) for word in rng.choice(WORDS, int(rng.integers(0, 4)))]
        return [[right + wrong, wrong, [], wrong + right][int(rng.integers(4))]]

    return drafter


def alone(cache: str, prompt: Sequence[int], hidden_from: int, limit: int, seg_runs: str) -> Generation:
    """hidden_from: nothing before the question is drawn."""
    *_, last = generate(
        Context(Hash(cache), len(prompt) + limit + 9),
        table,
        table(prompt),
        np.ones(len(prompt), np.bool_),
        prompt_rows(prompt[hidden_from:], hidden_from, CODEBOOK),
        CODEBOOK,
        eos=EOS,
        max_new_tokens=limit,
        seg_runs=seg_runs,
    )
    return last


CASES = {
    "in_place": ("in_place", {}),
    "concat": ("concat", {}),
    "few at once": ("in_place", {"tokens": 16, "rows": 9}),
    "a full cache": ("in_place", {"cache": 0}),  # as long as the answers need, and no token more
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seg_runs", ["complete", "original"])
def test_each_answer_is_its_own(name: str, seg_runs: str) -> None:
    """Pictures of different lengths, questions with and without targets, drafts, limits, answers that end early."""
    cache, limits = CASES[name]
    passes, masks = [], 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        head = [1, 3, 4]
        pictures = [[int(t) for t in rng.integers(50, 80, int(rng.integers(1, 9)))] for _ in range(2)]
        frames = [int(rng.integers(2)) for _ in range(int(rng.integers(1, 6)))]
        tails = [[int(t) for t in rng.integers(5, 20, int(rng.integers(1, 7)))] for _ in frames]
        tails = [[*tail, *SEG, 7] if rng.random() < 0.3 else tail for tail in tails]
        budgets = [int(rng.integers(1, 25)) for _ in frames]
        wanted = [
            alone(cache, [*head, *pictures[f], *tail], len(head) + len(pictures[f]), budget, seg_runs)
            for f, tail, budget in zip(frames, tails, budgets, strict=True)
        ]
        writings = [
            Writing(
                table,
                table(tail),
                np.ones(len(tail), np.bool_),
                prompt_rows(tail, 0, CODEBOOK),
                CODEBOOK,
                eos=EOS,
                max_new_tokens=budget,
                seg_runs=seg_runs,
                drafter=drafter_of(answer.token_ids, seed),
            )
            for tail, budget, answer in zip(tails, budgets, wanted, strict=True)
        ]
        start = len(head) + sum(map(len, pictures))
        full = start + sum(writing.reserve for writing in writings)
        memory = Limits(**(limits | ({"cache": full} if "cache" in limits else {})))
        engine = Hash(cache, memory)
        context = Context(engine, full if "cache" in limits else start + sum(map(len, tails)))
        branches = Branches(context)
        parents = [branches.open(len(head)) for _ in pictures]
        before = [Part(0, table(head))]
        before += [Part(branch, table(picture)) for branch, picture in zip(parents, pictures, strict=True)]
        at = [branches.open(len(head) + len(pictures[f]), parents[f]) for f in frames]
        for _ in generate_together(branches, dict(zip(at, writings, strict=True)), before):
            pass
        for writing, answer in zip(writings, wanted, strict=True):
            assert writing.result.token_ids == answer.token_ids
            assert writing.result.finished == answer.finished
            assert np.array_equal(writing.result.seg_hidden, answer.seg_hidden)
            assert 0 <= writing.result.refused <= writing.result.drafted
            masks += len(answer.seg_hidden)
        passes.append((len(engine.read), max(answer.forwards for answer in wanted)))
    assert masks > 30
    if name != "few at once":  # never more passes than the longest answer takes without a draft
        assert all(ours <= longest for ours, longest in passes)
        assert sum(longest - ours for ours, longest in passes) > (0 if name == "a full cache" else 30)


@pytest.mark.parametrize("cache", ["in_place", "concat"])
@pytest.mark.parametrize("skips", [False, True])
def test_what_is_read_of_a_branch(cache: str, skips: bool) -> None:
    """A beginning with tokens that nobody looks at, two branches behind it and one behind the first, read in parts."""
    rng = np.random.default_rng(0)
    beginning, first, second, third = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (6, 3, 4, 2))
    visible = np.array([True, True, False, True, False, False])

    def read(parts: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        """The sums at each row of the last part, all parts being one prompt."""
        context = Context(Graph(adding_language, cache), 20, skips)
        rows = np.concatenate([rows for rows, _ in parts])
        shown = np.concatenate([np.ones(len(rows), bool) if seen is None else seen for rows, seen in parts])
        last = np.arange(len(parts[-1][0])) + len(rows) - len(parts[-1][0])
        out = context.read(rows, {"pool": np.zeros((1, 1, len(rows)), np.float32), "query_rows": last}, shown)
        return np.asarray(out["queries"])[0]

    context = Context(Graph(adding_language, cache), 4, skips)
    branches = Branches(context)
    one, two = branches.open(6), branches.open(6)
    line = branches.line([Part(0, beginning, visible=visible), Part(two, second), Part(one, first)])
    assert len(line) == 13 - 3 * skips

    def ask(line: Any, count: int) -> np.ndarray:
        rows = np.arange(len(line) - count, len(line))
        asked = {"pool": np.zeros((1, 1, len(line)), np.float32), "query_rows": rows}
        return np.asarray(branches.run(line, 0, len(line), asked)["queries"])[0]

    start = (beginning, visible)
    found = ask(line, 7)
    np.testing.assert_allclose(found[:4], read([start, (second, None)]), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[4:], read([start, (first, None)]), rtol=1e-4, atol=1e-3)
    behind = branches.open(branches.position[one], one)
    found = ask(branches.line([Part(behind, third)]), 2)
    np.testing.assert_allclose(found, read([start, (first, None), (third, None)]), rtol=1e-4, atol=1e-3)
    branches.forget(two, 2)
    found = ask(branches.line([Part(two, third)]), 2)
    np.testing.assert_allclose(found, read([start, (second[:2], None), (third, None)]), rtol=1e-4, atol=1e-3)
    held = context.length
    branches.forget(two, 2)  # what lies at the end goes out of the cache
    assert context.length == held - 2


@pytest.mark.parametrize("cache", ["in_place", "concat"])
def test_room_is_given_back_and_taken_again(cache: str) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, WIDTH)).astype(np.float32), rng.normal(size=(4, WIDTH))

    def ask(context: Context, rows: np.ndarray) -> Any:
        count = len(rows)
        asked = {"pool": np.zeros((1, 1, count), np.float32), "query_rows": np.arange(count)}
        return context.read(rows.astype(np.float32), asked)["queries"]

    trimmed, plain = (Context(Graph(adding_language, cache), 90) for _ in range(2))
    for context in (trimmed, plain):
        ask(context, first)
        ask(context, second)
        context.rewind(5)
    held = trimmed.nbytes
    trimmed.trim()
    assert trimmed.capacity == 5 and (trimmed.nbytes < held or cache == "concat")
    trimmed.rewind(5, 9)
    assert np.array_equal(ask(trimmed, second), ask(plain, second))


def test_which_engines_go_on_behind_any_cache() -> None:
    assert together(Hash("in_place", Limits(tokens=8, cache=64)))
    assert together(Hash("concat"))
    assert not together(Hash("concat", Limits(tokens=8)))
