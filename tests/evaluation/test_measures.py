"""Each measure against a second, slow implementation of its published definition."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pixelrt.evaluation import matching, measures
from pixelrt_kernels.upsample_mask import reference

from tests.evaluation import miniature as mini


def masks(seed: int, count: int, size: tuple[int, int] = (9, 13)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = [rng.random(size) < rng.random() for _ in range(count)]
    return [*found, np.zeros(size, bool), np.zeros(size, bool)]


def test_ciou_and_giou_are_those_of_the_pixels() -> None:
    """LISA's definition, pixel by pixel; the last pair is two empty masks."""
    pairs, both, either, each = [], 0, 0, []
    for a, b in zip(masks(1, 6), masks(2, 6), strict=True):
        i = sum(bool(p) and bool(q) for p, q in zip(a.ravel(), b.ravel(), strict=True))
        u = sum(bool(p) or bool(q) for p, q in zip(a.ravel(), b.ravel(), strict=True))
        both, either = both + i, either + u
        each.append(i / u if u else 1.0)
        pairs.append(measures.overlap(a, b))
    assert measures.cumulative_iou(pairs) == pytest.approx(both / either, abs=1e-12)
    assert measures.ious(pairs) == pytest.approx(each, abs=1e-12)
    assert each[-1] == 1 and 0.1 < both / either < 0.9


# ---- panoptic quality with void and crowds ----------------------------------------------------------------


def segmented(seed: int) -> tuple[np.ndarray, dict[int, int], set[int], np.ndarray, dict[int, int]]:
    """Truth with void (0) and one crowd of class 0; drawn: blocks moved, renamed, dropped, invented, some on void."""
    rng = np.random.default_rng(seed)
    truth, drawn = np.zeros((2, 30, 40), np.int64)
    wanted, found = {}, {}
    for k in range(1, 8):
        y, x = rng.integers(0, 24), rng.integers(0, 34)
        block = slice(y, y + rng.integers(4, 12)), slice(x, x + rng.integers(4, 12))
        truth[block] = k
        wanted[k] = int(rng.integers(3))
        if rng.random() < 0.8:
            dy, dx = rng.integers(-2, 3, 2)
            moved = slice(max(0, y + dy), block[0].stop + dy), slice(max(0, x + dx), block[1].stop + dx)
            drawn[moved] = 10 * k
            found[10 * k] = wanted[k] if rng.random() < 0.8 else 2
    truth[:8, :14], wanted[99], found[990] = 99, 0, 0
    drawn[1:7, 2:12], drawn[20:, 30:], found[991] = 990, 991, 1
    here = [set(np.unique(m).tolist()) for m in (truth, drawn)]
    return (
        truth,
        {k: c for k, c in wanted.items() if k in here[0]},
        {99},
        drawn,
        {k: c for k, c in found.items() if k in here[1]},
    )


def counts_by_the_text(
    truth: np.ndarray, wanted: dict, crowds: set, drawn: np.ndarray, found: dict, classes: int
) -> np.ndarray:
    """Kirillov et al., section 4, over sets of pixels: void leaves the union and excuses, a crowd excuses."""
    pixels = {(k, n): {p for p, v in enumerate(m.ravel().tolist()) if v == n} for k, m in ((0, truth), (1, drawn))
              for n in np.unique(m).tolist()}  # fmt: skip
    void = pixels.get((0, 0), set())
    table, used, hit = np.zeros((classes, 4)), set(), set()
    for (n, kind), (m, other) in itertools.product(wanted.items(), found.items()):
        if kind != other or n in crowds:
            continue
        a, b = pixels[0, n], pixels[1, m] - void
        if len(a & b) / len(a | b) > 0.5:
            table[kind, 0] += len(a & b) / len(a | b)
            table[kind, 1] += 1
            used.add(m)
            hit.add(n)
    for n, kind in wanted.items():
        if n not in hit | crowds:
            table[kind, 3] += 1
    for m, kind in found.items():
        excuse = void.union(*(pixels[0, c] for c in crowds if wanted[c] == kind))
        if m not in used and len(pixels[1, m] & excuse) / len(pixels[1, m]) <= 0.5:
            table[kind, 2] += 1
    return table


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_counts_with_void_and_crowds(seed: int) -> None:
    truth, wanted, crowds, drawn, found = segmented(seed)
    got = measures.counts(truth, wanted, drawn, found, 3, crowds, void=0)
    np.testing.assert_allclose(got, counts_by_the_text(truth, wanted, crowds, drawn, found, 3), atol=1e-12)
    assert got[:, 1].sum() >= 1 and got[:, 2:].sum() > 0
    strict = measures.counts(truth, {**wanted, 99: 1}, drawn, found, 3, crowds, void=0)
    assert strict[0, 2] == got[0, 2] + 1  # a crowd of another class does not excuse what is drawn on it


def test_panoptic_quality_is_panopticapi_s(tmp_path: Path) -> None:
    evaluation = pytest.importorskip(
        "panopticapi.evaluation", reason="panopticapi is not on PyPI; github.com/cocodataset/panopticapi"
    )
    categories = {k: {"id": k, "name": str(k), "isthing": 1} for k in range(3)}
    total, pairs = np.zeros((3, 4)), []
    for seed in range(8):
        truth, wanted, crowds, drawn, found = segmented(seed)
        total += measures.counts(truth, wanted, drawn, found, 3, crowds, void=0)
        sides = []
        for name, numbers, kinds in (("truth", truth, wanted), ("drawn", drawn, found)):
            rgb = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
            mini.save_picture(tmp_path / name / f"{seed}.png", rgb)
            info = [
                {"id": n, "category_id": c, "iscrowd": int(n in crowds), "area": int((numbers == n).sum())}
                for n, c in kinds.items()
            ]
            sides.append({"image_id": seed, "file_name": f"{seed}.png", "segments_info": info})
        pairs.append(tuple(sides))
    theirs = evaluation.pq_compute_single_core(
        0, pairs, str(tmp_path / "truth"), str(tmp_path / "drawn"), categories
    )
    result, _ = theirs.pq_average(categories, isthing=None)
    np.testing.assert_allclose(
        measures.quality(total), [result["pq"], result["sq"], result["rq"]], atol=1e-12
    )


def test_mean_iou_of_classes_is_that_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    total, matrix = np.zeros((4, 3), np.int64), np.zeros((4, 4), int)
    for _ in range(3):
        truth, drawn = (
            rng.integers(-1, 3, (11, 7)),
            rng.integers(0, 4, (11, 7)),
        )  # -1 unjudged; 3 never occurs
        total += measures.class_overlaps(truth, drawn, 4)
        for t, d in zip(truth.ravel(), drawn.ravel(), strict=True):
            if t >= 0:
                matrix[t, d] += 1
    each = [matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]) for c in range(3)]
    assert measures.mean_class_iou(total) == pytest.approx(np.mean(each), abs=1e-12)


# ---- video ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1, 2, 8, 40])
def test_dilated_is_the_disc(radius: int) -> None:
    edt = pytest.importorskip("scipy.ndimage", reason="needs the eval extra").distance_transform_edt
    for seed, size in enumerate([(33, 20), (1, 7), (7, 1), (5, 60)]):
        mask = np.random.default_rng(seed).random(size) < 0.03
        mask[0, -1] = True
        np.testing.assert_array_equal(measures.dilated(mask, radius), edt(~mask) <= radius)


def test_contour_accuracy_of_a_shifted_square() -> None:
    """100 x 100: a slack of 2 pixels. Two pixels off is perfect, far off is nothing."""
    square = np.zeros((100, 100), bool)
    square[20:60, 30:70] = True
    assert math.ceil(0.008 * math.hypot(100, 100)) == 2
    assert measures.contour_accuracy(square, np.roll(square, 2, 1)) == 1
    assert 0 < measures.contour_accuracy(square, np.roll(square, 3, 1)) < 1
    assert measures.contour_accuracy(square, np.roll(square, (39, 29), (0, 1))) < 0.2


# ---- MUSE's matching --------------------------------------------------------------------------------------


def test_matching_costs_by_the_formula() -> None:
    rng = np.random.default_rng(3)
    logits, wanted = list(rng.normal(0, 4, (3, 6, 5))), [rng.random((6, 5)) < 0.4 for _ in range(2)]
    table = matching.costs(logits, wanted)
    for i, j in itertools.product(range(3), range(2)):
        bce = both = mine = theirs = 0.0
        for x, t in zip(logits[i].ravel(), wanted[j].ravel(), strict=True):
            p = 1 / (1 + math.exp(-x))
            bce -= math.log(p if t else 1 - p) / 30
            both, mine, theirs = both + p * t / 30, mine + p / 30, theirs + t / 30
        n = 12544  # sums over the original's points, here over as many of the average pixel
        dice = 1 - (2 * n * both + 1) / (n * mine + n * theirs + 1)
        assert table[i, j] == pytest.approx(bce + dice, abs=1e-9)


def test_the_assignment_is_the_best_of_all() -> None:
    pytest.importorskip("scipy", reason="needs the eval extra")
    for shape in ((3, 3), (4, 2), (2, 4), (0, 2), (2, 0)):
        cost = np.random.default_rng(sum(shape)).random(shape)
        pairs = matching.matched(cost)
        short, long = sorted(shape)
        every = [
            sum(cost[(k, p) if shape[0] <= shape[1] else (p, k)] for k, p in enumerate(order))
            for order in itertools.permutations(range(long), short)
        ]
        assert sum(cost[pair] for pair in pairs) == pytest.approx(min(every)) and len(pairs) == short


def test_what_has_no_partner_meets_an_empty_mask() -> None:
    a, b, c = masks(5, 3)[:3]
    pairs = matching.paired_overlaps([a, b], [c], [(1, 0)])
    assert pairs == [measures.overlap(b, c), (0, a.sum())]
    assert matching.paired_overlaps([], [a], []) == [(0, a.sum())]


def test_full_logits_are_those_of_the_mask() -> None:
    from types import SimpleNamespace

    low_res = np.random.default_rng(0).normal(0, 3, (1, 16, 16)).astype(np.float32)
    drawn, _, _ = reference.upsample_mask(low_res, 64, (64, 40), (50, 31))
    frame = SimpleNamespace(content=(64, 40), image=np.zeros((50, 31, 3), np.uint8))
    logits = matching.full_logits(SimpleNamespace(low_res_logits=low_res[0]), frame)
    np.testing.assert_array_equal(logits > 0, drawn[0])


# ---- AP ---------------------------------------------------------------------------------------------------


def average_precision_by_the_text(
    truth: list[tuple[int, np.ndarray]], found: list[tuple[int, float, np.ndarray]]
) -> float:
    """One class: at IoU 0.50, 0.55, ... 0.95 precision at 101 recalls; best first, each takes its best free object."""
    values = []
    for threshold in np.arange(0.5, 1, 0.05):
        free, hits = dict(enumerate(truth)), []
        for image, _, mask in sorted(found, key=lambda one: -one[1]):
            ious = {k: measures.iou(mask, want) for k, (at, want) in free.items() if at == image}
            best = max(ious, key=ious.__getitem__, default=None)
            hits.append(best is not None and ious[best] >= threshold)
            if hits[-1]:
                del free[best]
        right = np.cumsum(hits)
        precision, recall = right / np.arange(1, len(hits) + 1), right / len(truth)
        values.append(np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)]))
    return float(np.mean(values))


def test_average_precision_by_the_text(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="needs the eval extra")
    from pixelrt import rle
    from pixelrt.evaluation.coco_api import average_precision

    pictures = [mini.drawn(seed) for seed in range(5)]
    root = mini.write_coco(tmp_path, pictures)
    document = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    rng, found, by_class = np.random.default_rng(0), [], {k: ([], []) for k in (1, 2, 3)}
    for n, picture in enumerate(pictures, start=1):
        for label in (1, 2, 3):
            by_class[label][0].append((n, picture.mask(label)))
            for _ in range(rng.integers(0, 3)):
                mask, score = (
                    np.roll(picture.mask(label), rng.integers(-2, 3, 2), (0, 1)),
                    float(rng.random()),
                )
                by_class[label][1].append((n, score, mask))
                entry = {"image_id": n, "category_id": mini.CATEGORY_IDS[label - 1], "score": score}
                found.append({**entry, "segmentation": rle.encode(mask)})
    got = average_precision(document, [1, 2, 3, 4, 5], found)
    wanted = np.mean([average_precision_by_the_text(*sides) for sides in by_class.values()])
    assert got["AP"] == pytest.approx(wanted, abs=1e-9) and 0.05 < wanted < 0.9
    assert average_precision(document, [1, 2], [])["AP"] == 0
