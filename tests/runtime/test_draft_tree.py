"""Drafts read as a tree: what the model says of each branch is what it says of that draft alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.draft_tree import ROOT, Tree, straight
from pixelrt.engine_ort import OrtBackend
from pixelrt.language import Context
from pixelrt.prefix import Prefixes
from pixelrt.recording import plain
from pixelrt.segmenter import open_bundle

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
QUESTION = "Find it, please."
DRAFTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 9, 7], [4, 6, 7]]
# 5 6 7 8, behind 6: 9 7, from the root: 4 6 7
PARENTS = [ROOT, 0, 1, 2, 1, 4, ROOT, 6, 7]
TOKENS, DRAFTED = 40, 12  # of an answer; the cache has room for as many as the answer may have


@pytest.fixture(scope="module", params=[False, True], ids=["in place", "growing"])
def segmenter(request: pytest.FixtureRequest, golden_bundle_a: Path) -> Any:
    bundle = Bundle.read(golden_bundle_a)
    return open_bundle(bundle, OrtBackend(bundle, compatible=request.param))


def test_drafts_share_what_they_begin_with() -> None:
    tree = Tree(DRAFTS, deepest=9)
    assert tree.tokens == [5, 6, 7, 8, 9, 7, 4, 6, 7] and tree.parents == PARENTS
    assert (tree.trunk, tree.depth, len(tree)) == (4, 4, 9)
    assert tree.child(ROOT, 4) == 6 and tree.child(1, 9) == 4 and tree.child(3, 9) is None
    sees = tree.sees()
    assert sees is not None
    assert [np.flatnonzero(row).tolist() for row in sees[[3, 5, 8]]] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [6, 7, 8],
    ]
    tree.cut(5)
    assert tree.tokens == [5, 6, 7, 8, 9] and tree.child(4, 7) is None and tree.child(ROOT, 4) is None


def test_one_draft_is_no_tree() -> None:
    for drafts in ([], [[]], [[5, 6]], [[5, 6], [5]]):
        assert Tree(drafts, deepest=9).sees() is None
    assert Tree(DRAFTS, deepest=1).tokens == [5, 4]
    assert len(Tree(DRAFTS, deepest=0)) == 0 and Tree([], deepest=3).depth == 0


def test_what_lies_in_a_row_stays_in_the_cache() -> None:
    assert [straight(way) for way in ([], [0, 1, 2], [0, 1, 4, 5], [6, 7])] == [0, 3, 2, 0]


@pytest.mark.parametrize("skips", [False, True])
def test_a_branch_is_read_as_if_it_were_alone(segmenter: Any, skips: bool) -> None:
    frame, prompt = segmenter.encode(PICTURE), segmenter.prompt(QUESTION)
    prefill, visible = segmenter.embedded(frame, prompt)
    context = Context(segmenter._language, len(prefill) + 20, skips)
    context(prefill, [len(prefill) - 1], visible)
    end, tree = context.length, Tree(DRAFTS, deepest=9)
    together = context(segmenter.table(tree.tokens), range(len(tree)), sees=tree.sees())
    for draft in DRAFTS:
        context.rewind(end)
        alone = context(segmenter.table(draft), range(len(draft)))
        node, nodes = ROOT, []
        for token in draft:
            found = tree.child(node, token)
            assert found is not None
            nodes.append(node := found)
        # fp32, whose sums are added up in another order with other tokens beside.
        np.testing.assert_allclose(together.logits[nodes], alone.logits, atol=2e-4)
        np.testing.assert_allclose(together.hidden[nodes], alone.hidden, atol=2e-4)


def wrong(right: Sequence[int], at: int) -> list[int]:
    """The answer with another word from there on."""
    return [*right[:at], right[at] + 1, *right[at + 1 :]]


@pytest.mark.parametrize("kept", [True, False], ids=["kept prefix", "no prefix"])
def test_the_branch_that_is_right_is_as_good_as_the_first(segmenter: Any, kept: bool) -> None:
    """And one that leaves it goes on from there, with what was right read again; the next question finds the cache as
    it was."""
    twin: Any = plain(segmenter)
    twin.prefixes = Prefixes(twin._language) if kept else None
    wanted = plain(segmenter).segment(PICTURE, QUESTION, TOKENS)
    answer = [int(token) for token in wanted.token_ids]
    right = answer[:DRAFTED]
    frame = twin.encode(PICTURE)

    class Fixed:
        learning = False

        def __init__(self, drafts: list[list[int]]) -> None:
            self.drafts = drafts

        def of(self, question: Any) -> Any:
            return lambda ids: [] if ids else self.drafts

        def learn(self, draft: Any, answer: Any) -> None:
            pass

    forwards = []
    for drafts in (
        [right],
        [wrong(right, 0), wrong(right, 5), right],
        [wrong(right, 0), wrong(right, 5)],
        [wrong(right, 5), wrong(right, 0), wrong(right, 7)],
        [wrong(right, 0)],
    ):
        twin.drafts = Fixed(drafts)
        found = twin.segment(frame, QUESTION, TOKENS)
        assert list(found.token_ids) == answer
        forwards.append(found.decoding.forwards)
        for mask, other in zip(found.masks, wanted.masks, strict=True):
            np.testing.assert_allclose(mask.low_res_logits, other.low_res_logits, atol=1e-3)  # as above
    assert forwards[0] == forwards[1] < forwards[4]
    assert wanted.masks


def test_a_tree_that_the_engine_cannot_take_at_once(segmenter: Any) -> None:
    class Small:
        step = 1

        def most(self, name: str, axis: int) -> int | None:
            return 4 if name == "inputs_embeds" else None

        def __getattr__(self, name: str) -> Any:
            return getattr(segmenter._language.memory, name)

    class Engine:
        file, memory = segmenter._language.file, Small()

    tree = Tree(DRAFTS, deepest=9)
    with pytest.raises(ValueError, match="4 tokens at once"):
        Context(Engine(), 20)(segmenter.table(tree.tokens), [0], sees=tree.sees())  # type: ignore[arg-type]
