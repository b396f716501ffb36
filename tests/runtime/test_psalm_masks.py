"""From logits to results: the original's stored outputs, and the memory that it takes at 1080p."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.families import psalm_masks as post
from pixelrt.families.psalm_masks import Enlarged, Sizes, ranked
from pixelrt.families.psalm_video import tracked
from pixelrt.queries import Classes, Refer
from pixelrt_kernels import upsample_mask
from pixelrt_kernels.upsample_mask.probability import probability

Case = Callable[[str], dict[str, Any]]
GOLDEN = toy.golden()
NAMES = GOLDEN["class_names"][:-1]
THINGS = [name for name, thing in zip(NAMES, GOLDEN["is_thing_list"], strict=True) if thing]
QUERY = Classes(NAMES, things=THINGS)
SIZES = Sizes(128, (96, 128), (75, 100))
SCORE, VALUE = 5e-7, 2e-6  # both sides are fp32: a score below 1, a sum of twenty such


@pytest.fixture(autouse=True, params=["numpy", "host library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here, once in numpy and once in the host library."""
    library = None if request.param == "numpy" else request.getfixturevalue("host_library")
    monkeypatch.setattr(upsample_mask, "host_library", lambda: library)


def logits_of(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(Q, h, w), (Q, K)."""
    key = next(k for k in case if k.startswith("predictor.out.pred_") and k.endswith("logits"))
    scores = case[key].T if "region" in key else case[key][0]
    return case["predictor.out.pred_masks"][0], np.ascontiguousarray(scores)


# ---- against the original


def test_panoptic_equals_the_original(golden_psalm_case: Case) -> None:
    case = golden_psalm_case("panoptic")
    got = post.panoptic(*logits_of(case), QUERY, SIZES)
    assert got.label_map.dtype == np.int32 and np.array_equal(got.label_map, case["post.panoptic_seg"])
    info = [{"id": s.id, "isthing": s.is_thing, "category_id": s.category} for s in got.segments]
    assert info == GOLDEN["cases"]["panoptic"]["segments_info"]


def test_instances_equal_the_original(golden_psalm_case: Case) -> None:
    case = golden_psalm_case("panoptic")
    got = post.instances(*logits_of(case), QUERY, SIZES)
    order = np.argsort(-case["post.instances.scores"])
    assert len(got.masks) == len(order)
    for mask, category, k in zip(got.masks, got.category, order, strict=True):
        assert mask.score == pytest.approx(float(case["post.instances.scores"][k]), abs=SCORE)
        assert np.array_equal(mask.mask, case["post.instances.pred_masks"][k])
        assert category == case["post.instances.pred_classes"][k] and mask.label == NAMES[category]


@pytest.mark.parametrize(("name", "order"), [("panoptic", "logits"), ("semantic", "probabilities")])
def test_semantic_equals_the_original(golden_psalm_case: Case, name: str, order: str) -> None:
    case = golden_psalm_case(name)
    parts = [values for _, values in post.semantic_bands(*logits_of(case), SIZES, order)]
    np.testing.assert_allclose(np.concatenate(parts, 1), case["post.sem_seg"], rtol=0, atol=VALUE)
    if order == "probabilities":
        got = post.semantic(*logits_of(case), QUERY, SIZES)
        assert np.array_equal(got.label_map, case["post.sem_seg"].argmax(0))


def test_the_two_orders_differ(golden_psalm_case: Case) -> None:
    logits, scores = logits_of(golden_psalm_case("semantic"))
    a, b = (
        np.concatenate([v for _, v in post.semantic_bands(logits, scores, SIZES, order)], 1)
        for order in ("logits", "probabilities")
    )
    assert abs(a - b).max() > 1e-3


@pytest.mark.parametrize("name", ["referring", "region_box", "video"])
def test_scores_and_masks_equal_the_original(golden_psalm_case: Case, name: str) -> None:
    """Every query's mask; every query's score for every condition. The order of the stored ones means nothing."""
    case = golden_psalm_case(name)
    logits, scores = logits_of(case)
    want_masks, want = (
        case["post.instances.pred_masks"],
        case["post.instances.scores"].reshape(len(logits), -1),
    )
    source = Enlarged(logits, SIZES)
    for condition in range(scores.shape[1]):
        got = ranked(probability(scores[:, condition]), source, len(logits))
        order = np.argsort(-want[:, condition])
        np.testing.assert_allclose([score for _, score in got], want[order, condition], rtol=0, atol=SCORE)
        for (q, _), k in zip(got, order, strict=True):
            assert np.array_equal(source(q)[0].mask(), want_masks[k])


def test_answers_are_the_best_masks(golden_psalm_case: Case) -> None:
    case = golden_psalm_case("referring")
    answer = post.referred(*logits_of(case), Refer(["one", "two"]), SIZES)
    best = int(case["post.instances.scores"].argmax())
    assert len(answer.masks) == 1 and answer.masks[0].label == "one two"
    assert np.array_equal(answer.masks[0].mask, case["post.instances.pred_masks"][best])
    case = golden_psalm_case("region_box")
    answer = post.of_regions(*logits_of(case), ["box 1", "box 2", "box 3"], SIZES)
    best = case["post.instances.scores"].argmax(0)
    for mask, q, want in zip(answer.masks, best, case["post.instances.scores"].max(0), strict=True):
        assert np.array_equal(mask.mask, case["post.instances.pred_masks"][q])
        assert mask.score == pytest.approx(float(want), abs=SCORE)


# ---- memory


def smooth(queries: int) -> np.ndarray:
    blocks = np.random.default_rng(0).normal(-1, 4, (queries, 16, 16)).astype(np.float32)
    return np.repeat(np.repeat(blocks, 16, 1), 16, 2)


def tiles(queries: int) -> np.ndarray:
    """Masks that leave each other alone: all of them become segments."""
    logits = np.full((queries, 256, 256), -6, np.float32)
    for q in range(queries):
        y, x = divmod(q, 10)
        logits[q, 14 * y : 14 * y + 13, 25 * x : 25 * x + 24] = 6
    return logits


LIMIT = 150e6  # bytes above the logits


@pytest.mark.parametrize("what", ["panoptic", "instance", "semantic", "several", "regions", "track"])
def test_memory_at_1080p(what: str) -> None:
    """100 queries, 133 classes or 10 regions; all full-size masks would be 829 MB in fp32 and 207 MB as bytes."""
    rng = np.random.default_rng(1)
    sizes = Sizes(1024, (576, 1024), (1080, 1920))
    logits = tiles(100) if what == "panoptic" else smooth(100)
    scores = rng.normal(0, 1, (100, 134)).astype(np.float32)
    scores[np.arange(100), rng.integers(0, 133, 100)] += 14
    names = [f"class {k}" for k in range(133)]
    rules: dict[str, Callable[[], Any]] = {
        "panoptic": lambda: post.panoptic(logits, scores, Classes(names), sizes),
        "instance": lambda: post.instances(logits, scores, Classes(names, "instance"), sizes),
        "semantic": lambda: post.semantic(logits, scores, Classes(names, "semantic"), sizes),
        "several": lambda: post.referred(logits, scores[:, :1] + 3, Refer("it", several=True), sizes),
        "regions": lambda: post.of_regions(logits, scores[:, :10], names[:10], sizes),
        "track": lambda: tracked(logits, scores[:, :10], names[:10], sizes),
    }
    tracemalloc.start()
    try:
        result = rules[what]()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{what}: {peak / 1e6:.0f} MB above the logits, {len(result.masks)} masks")
    assert len(result.masks) >= (100 if what in ("panoptic", "instance") else 3)
    assert peak < LIMIT
