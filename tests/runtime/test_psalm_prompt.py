"""PSALM's prompts against those of the original: ids, places, what belongs to which condition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.errors import InputError
from pixelrt.families.psalm_prompt import REGION, PsalmPrompt, Tail

NAMES = [*toy.golden()["class_names"]]
SENTENCES = ("the blue disc on the right", "round thing")
TRAILING = 2  # tokens after the mask tokens, which are left out here


@pytest.fixture
def prompt(tmp_path: Path) -> PsalmPrompt:
    return PsalmPrompt(
        toy.write_tokenizer(tmp_path / "tokenizer.json"), toy.prompt_entry(), toy.tokens_entry()
    )


def tails(prompt: PsalmPrompt) -> dict[str, Tail]:
    return {
        "panoptic": prompt.classes(NAMES),
        "referring": prompt.sentence(SENTENCES),
        "region_box": prompt.regions(3),
    }


CASES = ("panoptic", "referring", "region_box")
Case = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("case", CASES)
def test_places_equal_the_original(prompt: PsalmPrompt, golden_psalm_case: Case, case: str) -> None:
    want, tail = golden_psalm_case(case), tails(prompt)[case]
    start = len(prompt.head) + toy.TOKENS
    length = len(want["seq.seg_query_mask"])
    assert start + len(tail) == length - TRAILING
    masks = np.zeros(length, int)
    masks[start + tail.mask_rows] = 1
    assert np.array_equal(masks, want["seq.seg_query_mask"])
    conditions = np.zeros(length, int)
    conditions[start : start + len(tail)] = tail.condition
    key = next(k for k in want if k.startswith("seq.") and k != "seq.seg_query_mask")
    wanted = want[key]
    if case == "region_box":  # the original only says that there is one
        wanted = wanted * np.cumsum(wanted)
    assert np.array_equal(conditions, wanted)


@pytest.mark.parametrize("case", CASES)
def test_ids_equal_the_original(prompt: PsalmPrompt, golden_psalm_case: Case, case: str) -> None:
    """Its ids hold one marker for each condition; the condition's own ids are stored beside them."""
    want, tail = golden_psalm_case(case), tails(prompt)[case]
    own = {"panoptic": "in.class_name_ids", "referring": "in.token_refer_id"}.get(case)
    if own:
        assert tail.ids[tail.condition > 0].tolist() == want[own].ravel().tolist()
    if case == "panoptic":
        assert (tail.condition[tail.condition > 0] - 1).tolist() == want["in.cls_indices"].ravel().tolist()
    marker = {"panoptic": -202, "referring": -204, "region_box": -203}[case]
    ids: list[int] = [*prompt.head, -200]
    for i, (token, condition) in enumerate(zip(tail.ids.tolist(), tail.condition.tolist(), strict=True)):
        if i in tail.mask_rows:
            ids += [-201] if i == tail.mask_rows[0] else []
        elif condition == 0:
            ids.append(token)
        elif condition != tail.condition[i - 1]:
            ids.append(marker)
    assert ids == want["in.input_ids"][0][:-TRAILING].tolist()


def test_embeddings_equal_the_original(
    prompt: PsalmPrompt, golden_psalm_case: Case, golden_psalm_checkpoint: Path
) -> None:
    """Rows of the token table and the learned mask tokens, at their places."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    weights = {k: v for f in golden_psalm_checkpoint.glob("*.safetensors") for k, v in load_file(f).items()}
    table = np.concatenate([weights["model.embed_tokens.weight"], weights["seg_query"]])
    for case in CASES:
        want, tail = golden_psalm_case(case)["llm.inputs_embeds"][0], tails(prompt)[case]
        start = len(prompt.head)
        assert np.array_equal(want[:start], table[prompt.head])
        known = tail.ids != REGION
        assert np.array_equal(want[start + toy.TOKENS : -TRAILING][known], table[tail.ids[known]])


def test_pool_is_the_mean_of_each_condition(prompt: PsalmPrompt) -> None:
    for tail in tails(prompt).values():
        pool = tail.pool(slice(0, len(tail)))
        assert pool.shape == (tail.condition.max(), len(tail)) and pool.dtype == np.float32
        for k, row in enumerate(pool, start=1):
            assert np.array_equal(row > 0, tail.condition == k)
            assert row.sum() == pytest.approx(1) and len(set(row[row > 0])) == 1


@pytest.mark.parametrize("limit", [1, 7, 30, 100, 455, 10_000])
def test_parts_cut_no_condition(prompt: PsalmPrompt, limit: int) -> None:
    for tail in tails(prompt).values():
        parts = tail.parts(limit)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == len(tail)
        for part in parts:
            assert part.stop - part.start <= max(limit, 45)  # the longest condition
            inside = np.isin(tail.mask_rows, np.arange(part.start, part.stop))
            assert inside.all() or not inside.any()
        pools = np.concatenate([tail.pool(part).sum(1) for part in parts])
        np.testing.assert_allclose(pools, np.ones(tail.condition.max()), atol=1e-6)
        if limit >= len(tail):
            assert len(parts) == 1


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_lengths_of_class_lists(prompt: PsalmPrompt, count: int) -> None:
    tail = prompt.classes([f"thing {i}" for i in range(count)])
    assert tail.condition.max() == count and len(tail.mask_rows) == toy.QUERIES
    assert np.all(np.diff(tail.mask_rows) == 1) and tail.mask_rows[-1] == len(tail) - 1


def test_a_full_stop_is_not_doubled(prompt: PsalmPrompt) -> None:
    assert np.array_equal(prompt.sentence(["the mug."]).ids, prompt.sentence(["the mug"]).ids)
    assert bytes(prompt.sentence(["a", "b"]).ids.clip(0, 255).astype(np.uint8)).count(b" a. b.") == 1


def test_names_cannot_pose_as_markers(prompt: PsalmPrompt) -> None:
    tail = prompt.classes(["<cls>", "<seg>, <cls>", "{conditions}"])
    text = bytes(tail.ids[(tail.condition > 0) & (tail.ids < 256)].tolist()).decode()
    assert text == "<cls><seg>, <cls>{conditions}" and tail.condition.max() == 3


def test_templates_of_one_head(tmp_path: Path) -> None:
    entry = json.loads(json.dumps(toy.prompt_entry()))
    entry["templates"]["class"] = "!" + entry["templates"]["class"]
    path = toy.write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="different texts"):
        PsalmPrompt(path, entry, toy.tokens_entry())
