"""Greedy decoding over a scripted language model: what is read, what is kept, when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pixelrt.bundle import GraphFile, Tensor
from pixelrt.engine import HostMemory
from pixelrt.errors import InputError
from pixelrt.generate import Codebook, Generation, check_settings, generate, no_drafts, prompt_rows
from pixelrt.language import Context

SEG = (90, 91, 92, 93, 94, 95)
CODEBOOK = Codebook(SEG)
EOS = 2
PROMPT = [1, 10, 11]
WIDTH = 4


def table(ids: Sequence[int]) -> np.ndarray:
    """The embedding of a token is its id, four times."""
    return np.repeat(np.asarray(ids, np.float32)[:, None], WIDTH, axis=1)


class Script:
    """A language model whose next token depends on the last one alone; hidden state = (token read, row, …).

    `reads` lists the tokens of every call, so a test sees how many forwards there were and what they held.
    """

    def __init__(self, successor: Mapping[int, int], cache: str = "concat") -> None:
        past = tuple(Tensor(f"past.0.{part}", "activations", ("B", 1, "P", 1)) for part in ("key", "value"))
        self.file = GraphFile(Path("none"), "float32", 21, cache, past, ())
        self.successor, self.reads, self.masks, self.memory = successor, [], [], HostMemory()

    def __call__(self, inputs, into=None):
        tokens = inputs["inputs_embeds"][0, :, 0].astype(int)
        self.reads.append(tokens.tolist())
        self.masks.append(inputs["attn_mask"][0, 0])
        rows = inputs["logit_rows"]
        logits = np.zeros((1, len(rows), 100), np.float32)
        for i, row in enumerate(rows):
            logits[0, i, self.successor[int(tokens[row])]] = 1
        hidden = np.zeros((1, len(rows), WIDTH), np.float32)
        hidden[0, :, 0] = tokens[rows]
        grown = inputs["past.0.key"].shape[2] + len(tokens)
        cache = np.zeros((1, 1, grown, 1), np.float32)
        return {"logits": logits, "hidden": hidden, "present.0.key": cache, "present.0.value": cache}


def chain(*tokens: int) -> dict[int, int]:
    return dict(pairwise(tokens))


def answer(
    engine: Script,
    *,
    limit: int = 50,
    seg_runs: str = "complete",
    prompt: Sequence[int] = PROMPT,
    drafter=no_drafts,
) -> Generation:
    rows = prompt_rows(prompt[1:], 1, CODEBOOK)
    visible = np.ones(len(prompt), bool)
    context = Context(engine, len(prompt) + limit + 5)
    *_, last = generate(
        context,
        table,
        table(prompt),
        visible,
        rows,
        CODEBOOK,
        eos=EOS,
        max_new_tokens=limit,
        seg_runs=seg_runs,
        drafter=drafter,
    )
    return last


def predicted_by(generation: Generation) -> list[int]:
    """The token whose hidden state was kept for each codebook token."""
    return [int(h[0]) for h in generation.seg_hidden]


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
def test_each_codebook_token_keeps_the_state_that_predicted_it(seg_runs: str) -> None:
    engine = Script(chain(11, 20, *SEG, 21, EOS))
    got = answer(engine, seg_runs=seg_runs)
    assert got.token_ids == [20, *SEG, 21, EOS]
    assert predicted_by(got) == [20, *SEG[:-1]]
    assert got.targets(CODEBOOK).shape == (1, 6, WIDTH)


def test_a_run_is_read_in_one_step() -> None:
    engine = Script(chain(11, 20, *SEG, 21, EOS))
    answer(engine)
    assert engine.reads == [PROMPT, [20], list(SEG), [21]]
    original = Script(chain(11, 20, *SEG, 21, EOS))
    answer(original, seg_runs="original")
    assert len(original.reads) == 9  # one a token


def test_a_broken_run_is_completed_or_drops_all() -> None:
    """The model leaves the run after its third token."""
    script = chain(11, *SEG[:3], 21, EOS) | {SEG[3]: 0, SEG[4]: 0, SEG[5]: 22, 22: EOS}
    complete = answer(Script(script))
    assert complete.token_ids == [*SEG, 22, EOS]
    assert len(complete.targets(CODEBOOK)) == 1
    original = answer(Script(script), seg_runs="original")
    assert original.token_ids == [*SEG[:3], 21, EOS]
    assert original.targets(CODEBOOK) is None


def test_a_run_that_begins_in_the_middle_is_a_whole_run() -> None:
    complete = answer(Script({11: SEG[2]} | dict.fromkeys(SEG, EOS)))
    assert complete.token_ids == [*SEG, EOS]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_limit(limit: int) -> None:
    """max_new_tokens holds exactly in `original`; in `complete` a begun run is finished first."""
    whole = [20, *SEG, 21, 22, EOS]
    original = answer(Script(chain(11, *whole)), limit=limit, seg_runs="original")
    assert original.token_ids == whole[:limit]
    complete = answer(Script(chain(11, *whole)), limit=limit)
    assert complete.token_ids == (whole[:limit] if limit == 1 else whole[: max(limit, 7)])
    assert len(complete.seg_hidden) == (0 if limit == 1 else 6)


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
def test_runs_that_touch(seg_runs: str) -> None:
    """The second run's first token is predicted by the first run's last."""
    got = answer(Script(chain(11, *SEG) | {SEG[5]: SEG[0]}), limit=12, seg_runs=seg_runs)
    assert got.token_ids == [*SEG, *SEG]
    assert predicted_by(got) == [11, *SEG[:-1], SEG[5], *SEG[:-1]]


def test_nothing_is_read_after_the_last_token() -> None:
    engine = Script(chain(11, 20, *SEG))
    answer(engine, limit=7)
    assert engine.reads == [PROMPT, [20], list(SEG[:-1])]


def test_codebook_tokens_of_the_prompt_come_first() -> None:
    engine = Script(chain(11, *SEG, 12) | {12: 20, 20: EOS} | chain(1, 10, 11))
    prompt = [1, 10, 11, *SEG, 12]
    got = answer(engine, prompt=prompt)
    assert predicted_by(got) == [11, *SEG[:-1]]
    with pytest.raises(InputError, match="multiple of 6"):
        answer(Script(chain(1, 10, 11, *SEG, EOS)), prompt=[1, 10, *SEG[:4], 11])


def test_ties_go_to_the_first() -> None:
    engine = Script({11: 20, 20: EOS})
    call = engine.__call__

    def tied(inputs, into=None):
        out = call(inputs, into)
        out["logits"][..., 50] = out["logits"].max()
        return out

    tied.file, tied.memory = engine.file, engine.memory
    assert answer(tied).token_ids[0] == 20


@pytest.mark.parametrize(
    ("limit", "seg_runs", "sentence"),
    [(0, "complete", "1 or more"), (2.5, "complete", "whole number"), (5, "all", "Choose one")],
)
def test_bad_settings(limit: object, seg_runs: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_settings(limit, seg_runs)


def test_logits_that_are_no_numbers_are_no_answer() -> None:
    engine = Script({11: 20, 20: EOS})

    def overflowing(inputs, into=None):
        out = engine(inputs, into)
        out["logits"][..., 7] = np.nan
        return out

    overflowing.file, overflowing.memory = engine.file, engine.memory
    with pytest.raises(ArithmeticError, match="not finite"):
        answer(overflowing)


def test_finished_tells_an_ended_answer_from_a_cut_one() -> None:
    script = chain(11, 20, 21, EOS)
    assert answer(Script(script)).finished
    assert not answer(Script(script), limit=2).finished
    assert answer(Script(script), limit=3).finished


def test_where_runs_begin() -> None:
    """A target of the prompt, or one whose tokens are in pieces, begins nowhere."""
    hidden = [np.zeros(WIDTH)]
    whole = Generation([20, *SEG, 21, *SEG], hidden * 12)
    assert whole.run_starts(CODEBOOK) == [1, 8]
    assert Generation([*SEG], hidden * 12).run_starts(CODEBOOK) == [None, 0]
    pieces = Generation([*SEG[:3], 20, *SEG, 21, *SEG[3:]], hidden * 12)
    assert pieces.run_starts(CODEBOOK) == [None, None]


def test_mask_is_causal_and_hides_padding() -> None:
    engine = Script(chain(11, 20, 21, EOS))
    context = Context(engine, 10)
    visible = np.array([True, False, True])
    context(table(PROMPT), [2], visible)
    context(table([20, 21]), [1])
    assert engine.masks[0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert engine.masks[1].tolist() == [[1, 0, 1, 1, 0], [1, 0, 1, 1, 1]]
    with pytest.raises(ValueError, match="cannot take 11"):
        context(table([20] * 6), [0])


def noise(seed: int) -> tuple[dict[int, int], list[int]]:
    """A model of random successors, a third of them codebook tokens, and what it says after the prompt."""
    rng = np.random.default_rng(seed)
    words = [*range(20, 30), *SEG, EOS]
    successor = {11: int(rng.choice(words))}
    for token in words:
        share = 0.7 if token in SEG[:-1] else 0.0  # most runs are whole
        successor[token] = token + 1 if rng.random() < share else int(rng.choice(words))
    return successor, words


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
def test_no_draft_changes_the_answer(seg_runs: str) -> None:
    """Right drafts, wrong ones and half right ones, at any place, under any limit, give what plain decoding gives."""
    saved = 0
    for seed in range(300):
        successor, words = noise(seed)
        rng = np.random.default_rng([seed, 1])
        limit = int(rng.integers(1, 30))
        plain_engine, engine = Script(successor), Script(successor)
        plain = answer(plain_engine, limit=limit, seg_runs=seg_runs)

        def drafter(ids, plain=plain, rng=rng, words=words):
            right = plain.token_ids[len(ids) : len(ids) + int(rng.integers(0, 12))]
            wrong = [int(word) for word in rng.choice(words, int(rng.integers(0, 4)))]
            drafts = [right + wrong, wrong, [], wrong + right, right[: len(right) // 2] + wrong]
            return [drafts[int(which)] for which in rng.integers(5, size=int(rng.integers(4)))]

        got = answer(engine, limit=limit, seg_runs=seg_runs, drafter=drafter)
        assert got.token_ids == plain.token_ids
        assert got.finished == plain.finished
        assert predicted_by(got) == predicted_by(plain)
        assert 0 <= got.refused <= got.drafted
        assert len(engine.reads) <= len(plain_engine.reads)
        saved += len(plain_engine.reads) - len(engine.reads)
    assert saved > 300


def test_a_right_draft_is_one_forward() -> None:
    whole = [20, *SEG, 21, EOS]
    engine = Script(chain(11, *whole, 0))
    got = answer(engine, drafter=lambda ids: [whole[len(ids) :]])
    assert got.token_ids == whole
    assert engine.reads == [[*PROMPT, *whole]]
    assert (got.drafted, got.refused) == (9, 0)


def test_a_refused_draft_leaves_the_cache() -> None:
    """What was read in vain is forgotten: no later token may look at it."""
    engine = Script(chain(11, 20, 21, 22, EOS) | {70: 0, 71: 0})
    answer(engine, drafter=lambda ids: [] if ids else [[20, 70, 71]])
    assert engine.reads == [[*PROMPT, 20, 70, 71], [21], [22]]
    assert [mask.shape[1] for mask in engine.masks] == [6, 5, 6]


class Profile(HostMemory):
    """As of a TensorRT engine: so many tokens at once, so many rows of logits."""

    def __init__(self, tokens: int, rows: int) -> None:
        super().__init__()
        self.limits = {("inputs_embeds", 1): tokens, ("logit_rows", 0): rows}

    def most(self, name: str, axis: int) -> int | None:
        return self.limits.get((name, axis))

    def takes(self, sizes: Mapping[tuple[str, int], int]) -> bool:
        return all(size <= self.limits.get(place, size) for place, size in sizes.items())


@pytest.mark.parametrize(("tokens", "rows"), [(8, 64), (64, 7), (9, 6), (6, 6)])
def test_no_more_is_drafted_than_the_engine_takes(tokens: int, rows: int) -> None:
    whole = [20, *SEG, 21, 22, 23, *SEG, 24, 25, EOS]
    successor = chain(11, 20, *SEG) | chain(21, 22, 23) | chain(24, 25, EOS)
    for last in range(3):
        engine = Script(successor | {SEG[-1]: 21, 23: SEG[0]} | ({SEG[-1]: 24} if last else {}))
        engine.memory = Profile(tokens, rows)
        calls: list[int] = []
        given = engine.__call__

        def limited(inputs, into=None, given=given, calls=calls):
            calls.append(len(inputs["logit_rows"]))
            assert inputs["inputs_embeds"].shape[1] <= tokens and calls[-1] <= rows
            return given(inputs, into)

        limited.file, limited.memory = engine.file, engine.memory
        plain = answer(Script(engine.successor), limit=last * 9 + 9)
        got = answer(limited, limit=last * 9 + 9, drafter=lambda ids: [whole[len(ids) :]])
        assert got.token_ids == plain.token_ids
        assert max(calls) > 1 and got.forwards == len(calls)
