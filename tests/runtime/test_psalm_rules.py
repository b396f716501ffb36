"""PSALM's rules for masks, written out slowly with every mask at full size, on scenes that exercise them."""

from __future__ import annotations

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.families import psalm_masks as post
from pixelrt.families.psalm_masks import Enlarged, Sizes, ranked, softmax
from pixelrt.families.psalm_video import distinct, fused, iou, tracked
from pixelrt.queries import Classes, Refer
from pixelrt_kernels.upsample_mask.chain import Chain
from pixelrt_kernels.upsample_mask.probability import probability

NAMES = toy.golden()["class_names"][:-1]
SIZES = Sizes(128, (96, 128), (75, 100))


def enlarged(logits: np.ndarray, sizes: Sizes = SIZES) -> np.ndarray:
    """All Q planes (Q, H, W), which only a test may hold."""
    chain = Chain.of(logits, sizes.square, sizes.content, sizes.original)
    return np.stack([chain.rows(plane, slice(0, sizes.original[0])) for plane in logits])


def scene(seed: int, queries: int = 20, classes: int = 6, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap, nest and repeat, some of them faint; most sure of a class, some of the background."""
    rng = np.random.default_rng(seed)
    logits = np.full((queries, side, side), -6, np.float32)
    scores = rng.normal(0, 0.5, (queries, classes + 1)).astype(np.float32)
    for q in range(queries):
        y, x = rng.integers(0, side - 8, 2)
        h, w = rng.integers(4, side // 2, 2)
        logits[q, y : y + h, x : x + w] = rng.choice([0.4, 3.0, 6.0, -0.5])
        if q and rng.random() < 0.3:  # nearly the mask before
            logits[q] = np.roll(logits[q - 1], 1, axis=1)
        scores[q, rng.integers(0, classes + 1)] += rng.choice([1.0, 4.0, 6.0, 9.0])
    return logits, scores


def literal_panoptic(
    logits: np.ndarray, scores: np.ndarray, things: set[int], planes: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, bool, int]]]:
    chance = softmax(scores)
    score, label = chance.max(1), chance.argmax(1)
    keep = (label != scores.shape[1] - 1) & (score > 0.8)
    drawn = np.zeros(planes.shape[1:], np.int32)
    if not keep.any():
        return drawn, []
    m, score, label = probability(planes[keep]), score[keep], label[keep]
    ids = (score[:, None, None] * m).argmax(0)
    stuff: dict[int, int] = {}
    info: list[tuple[int, bool, int]] = []
    current = 0
    for k in range(len(score)):
        area, whole = int((ids == k).sum()), int((m[k] >= 0.5).sum())
        final = (ids == k) & (m[k] >= 0.5)
        if not (area > 0 and whole > 0 and final.sum() > 0) or area / whole < 0.8:
            continue
        kind = int(label[k])
        if kind not in things:
            if kind in stuff:
                drawn[final] = stuff[kind]
                continue
            stuff[kind] = current + 1
        current += 1
        drawn[final] = current
        info.append((current, kind in things, kind))
    return drawn, info


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("things", [(0, 1, 4), (), (0, 1, 2, 3, 4, 5)])
def test_panoptic_follows_the_rules(seed: int, things: tuple[int, ...]) -> None:
    logits, scores = scene(seed)
    query = Classes(NAMES, things=[NAMES[k] for k in things])
    drawn, info = literal_panoptic(logits, scores, set(things), enlarged(logits))
    got = post.panoptic(logits, scores, query, SIZES)
    assert np.array_equal(got.label_map, drawn)
    assert [(s.id, s.is_thing, s.category) for s in got.segments] == info
    for segment in got.segments:
        ys, xs = np.nonzero(drawn == segment.id)
        assert segment.area == len(ys)
        assert segment.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_the_scenes_exercise_the_rules() -> None:
    """Among them: segments dropped for their overlap, stuff of several queries, sure queries of the background."""
    dropped = merged = background = empty = 0
    for seed in range(12):
        logits, scores = scene(seed)
        chance = softmax(scores)
        sure = chance.max(1) > 0.8
        background += int((sure & (chance.argmax(1) == 6)).sum())
        kept = int((sure & (chance.argmax(1) != 6)).sum())
        things = post.panoptic(logits, scores, Classes(NAMES), SIZES).segments
        stuff = post.panoptic(logits, scores, Classes(NAMES, things=[]), SIZES).segments
        dropped += kept - len(things)
        merged += len(things) - len(stuff)
        empty += int((enlarged(logits) > 0).any((1, 2)).sum() < len(logits))
    assert min(dropped, merged, background, empty) > 3


def test_panoptic_of_nothing() -> None:
    logits, scores = scene(0)
    scores[:, -1] = 50  # background everywhere
    got = post.panoptic(logits, scores, Classes(NAMES), SIZES)
    assert not got.label_map.any() and got.segments == [] and len(got.masks) == 0


def literal_instances(scores: np.ndarray, planes: np.ndarray, things: set[int]) -> set[tuple[int, int]]:
    classes = scores.shape[1] - 1
    chance = softmax(scores)[:, :classes].ravel()
    top = np.argsort(-chance, kind="stable")[: len(scores)]
    found = set()
    for pair in top:
        q, kind = int(pair) // classes, int(pair) % classes
        if kind in things:
            mask = planes[q] > 0
            mean = (probability(planes[q]) * mask).sum() / (mask.sum() + 1e-6)
            found.add((kind, round(float(chance[pair] * mean) * 1e5), mask.tobytes()))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("things", [(0, 1, 4), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_instances_follow_the_rules(seed: int, things: tuple[int, ...], task: str) -> None:
    logits, scores = scene(seed)
    query = Classes(NAMES, task, things=[NAMES[k] for k in things])
    got = post.instances(logits, scores, query, SIZES)
    # The original drops stuff only where it makes instances beside a panoptic map.
    want = literal_instances(scores, enlarged(logits), set(things if task == "panoptic" else range(6)))
    found = {
        (kind, round(mask.score * 1e5), mask.mask.tobytes())
        for kind, mask in zip(got.category, got.masks, strict=True)
    }
    assert found == want
    marks = [mask.score for mask in got.masks]
    assert marks == sorted(marks, reverse=True)
    few = post.instances(logits, scores, Classes(NAMES, task, query.things, 0.5), SIZES)
    assert [mask.score for mask in few.masks] == [score for score in marks if score >= 0.5]


def test_semantic_is_the_largest_sum() -> None:
    for seed, classes in ((1, 6), (2, 1), (3, 300)):
        logits, scores = scene(seed, classes=classes)
        for sizes in (SIZES, Sizes(128, (128, 61), (33, 17)), Sizes(128, (128, 128), (301, 300))):
            bands = np.concatenate([v for _, v in post.semantic_bands(logits, scores, sizes)], 1)
            got = post.semantic(logits, scores, Classes([f"c{k}" for k in range(classes)]), sizes)
            assert np.array_equal(got.label_map, bands.argmax(0))
            assert sum(s.area for s in got.segments) == got.label_map.size
            best = got.segments[0]
            share = (bands[best.category] / bands.sum(0))[got.label_map == best.category].mean()
            assert best.score == pytest.approx(float(share), abs=1e-5)


def literal_scores(logits: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(Q, K): chance times mean probability of the mask."""
    planes = enlarged(logits)
    masks = planes > 0
    mean = (probability(planes) * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    return probability(scores) * mean[:, None]


@pytest.mark.parametrize("seed", range(6))
def test_referring_follows_the_rules(seed: int) -> None:
    """Several: the union of all above 0.6, or the best one where there is none."""
    logits, scores = scene(seed)
    scores = scores[:, 5:6] * (seed % 3)  # in a third of the seeds nothing is above
    final, masks = literal_scores(logits, scores)[:, 0], enlarged(logits) > 0
    one = post.referred(logits, scores, Refer("it"), SIZES)
    assert len(one.masks) == 1 and np.array_equal(one.masks[0].mask, masks[final.argmax()])
    several = post.referred(logits, scores, Refer("it", several=True), SIZES)
    chosen = final > 0.6 if (final > 0.6).any() else np.arange(len(final)) == final.argmax()
    assert len(several.masks) == chosen.sum()
    union = np.logical_or.reduce([mask.mask for mask in several.masks])
    assert np.array_equal(union, masks[chosen].any(0))
    assert len(post.referred(logits, scores, Refer("it", none_below=1.0), SIZES).masks) == 0
    bar = float(final.max()) - 1e-3
    assert len(post.referred(logits, scores, Refer("it", none_below=bar), SIZES).masks) == 1


def test_queries_that_cannot_win_are_not_enlarged() -> None:
    logits, scores = scene(1)
    scores[:] = -3
    scores[7], logits[7, 4:20, 4:20] = 3, 6
    source = Enlarged(logits, SIZES)
    assert ranked(probability(scores[:, 0]), source, 1)[0][0] == 7
    assert list(source.made) == [7]


@pytest.mark.parametrize("seed", range(6))
def test_regions_and_tracks_follow_the_rules(seed: int) -> None:
    """Interactive: the best query of each region, whoever else has it. Video: one that no earlier object has."""
    logits, scores = scene(seed)
    scores = np.concatenate([scores[:, :2], scores[:, :2]], 1)  # two pairs of objects want the same
    final, masks = literal_scores(logits, scores), enlarged(logits) > 0
    labels = ["a", "b", "c", "d"]
    answer = post.of_regions(logits, scores, labels, SIZES)
    for r, mask in enumerate(answer.masks):
        assert np.array_equal(mask.mask, masks[final[:, r].argmax()]) and mask.label == labels[r]
    taken: list[int] = []
    for r in range(4):
        taken.append(next(int(q) for q in np.argsort(-final[:, r])[:10] if q not in taken))
    got = tracked(logits, scores, labels, SIZES)
    drawn = np.zeros(SIZES.original, int)
    for number, (q, mask) in enumerate(zip(taken, got.masks, strict=True), start=1):
        assert np.array_equal(mask.mask, masks[q])
        drawn[masks[q]] = number
    assert np.array_equal(got.label_map, drawn)


def test_an_object_without_a_free_candidate_gets_the_best() -> None:
    logits, scores = scene(2)
    same = np.repeat(scores[:, :1], 12, axis=1)
    got = tracked(logits, same, [str(i) for i in range(12)], SIZES)
    marks = [mask.score for mask in got.masks]
    assert marks[:10] == sorted(marks[:10], reverse=True)
    assert marks[10] == marks[11] == marks[0]


def test_when_masks_may_be_remembered() -> None:
    a, b = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
    a[:, :7], b[:, 3:] = True, True
    assert iou(a, b) == pytest.approx(0.4) and distinct([a, b])
    b[0, 2] = True
    assert not distinct([a, b])
    assert not distinct([a, np.zeros((4, 10), bool)]) and iou(a & ~a, a & ~a) == 0
    assert np.array_equal(fused([], (2, 3)), np.zeros((2, 3)))
