"""From PSALM's mask logits (Q, h, w) and scores (Q, K) to results at the picture's size.

Source of every rule and number: the original's `panoptic_inference`, `instance_inference`, `semantic_inference`,
`SEG_instance_inference`, `region_inference`, and its evaluation scripts. There all Q masks are resized first;
here only those that can still change the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels.upsample_mask import class_bands
from pixelrt_kernels.upsample_mask.probability import probability
from pixelrt_kernels.upsample_mask.reference import box_of

from pixelrt.coco import Category
from pixelrt.engine import Value
from pixelrt.masks import Answer, Mask
from pixelrt.queries import Classes, Refer
from pixelrt.results import Instances, Masks, Packed, Panoptic, Segment, Semantic
from pixelrt.upsample import class_map, label_map, upsample_bits

CLASS_SCORE_MIN = 0.8  # of a query's best class, panoptic
OVERLAP_MIN = 0.8  # part of a mask that other masks leave to it, panoptic
SEVERAL_SCORE_MIN = 0.6  # of each mask, where a sentence may name several things
# A mask's score cannot exceed its query's; this covers the rounding of the two.
ROUNDING = 1 + 1e-5

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Sizes:
    """square: side of the network's input; content: rows and columns the picture fills; original: its own."""

    square: int
    content: tuple[int, int]
    original: tuple[int, int]


class Enlarged:
    """Masks (H, W) of queries, each made when first asked for, and the mean probability inside it."""

    def __init__(self, logits: Value, sizes: Sizes) -> None:
        """logits: (Q, h, w)."""
        self.logits, self.sizes = logits, sizes
        self.made: dict[int, tuple[Packed, float]] = {}

    def __call__(self, query: int) -> tuple[Packed, float]:
        if query not in self.made:
            sizes = self.sizes
            bits, scores, boxes = upsample_bits(
                self.logits[query : query + 1], sizes.square, sizes.content, sizes.original
            )
            x0, y0, x1, y1 = (int(edge) for edge in boxes[0])
            packed = Packed(bits[0], sizes.original[1], (x0, y0, x1, y1) if x1 > x0 else None)
            self.made[query] = packed, float(scores[0])
        return self.made[query]

    def mask(self, query: int, score: float, label: str) -> Mask:
        packed, _ = self(query)
        return Mask(packed.mask(), score, label, None, packed.box, np.asarray(self.logits[query]))

    def masks(self, found: Sequence[tuple[int, float, str]]) -> Masks:
        """Lazy masks of (query, score, label)."""
        return Masks([partial(self.mask, *one) for one in found])


def panoptic(logits: Value, scores: Floats, query: Classes, sizes: Sizes) -> Panoptic:
    """scores (Q, C + 1), the background last.

    Queries sure of a class compete for each pixel; one that keeps less than OVERLAP_MIN of its mask is dropped
    (its pixels belong to nothing then). Segments of one stuff class are one.
    """
    chance = softmax(scores)
    best, category = chance.max(1), chance.argmax(1)
    kept = np.flatnonzero((category != scores.shape[1] - 1) & (best > np.float32(CLASS_SCORE_MIN)))
    owners = label_map(logits[kept], best[kept], sizes.square, sizes.content, sizes.original)
    number_of = np.zeros(len(kept) + 1, np.int32)  # the last one for pixels of nobody
    joined: list[list[int]] = []  # queries of each segment
    stuff: dict[int, int] = {}
    for k, q in enumerate(kept):
        whole, won = int(owners.whole[k]), int(owners.won[k])
        if not (whole and won and owners.kept[k]) or won / whole < OVERLAP_MIN:
            continue
        kind = int(category[q])
        if kind in stuff:
            joined[stuff[kind] - 1].append(int(q))
        else:
            joined.append([int(q)])
        number_of[k] = stuff[kind] if kind in stuff else len(joined)
        if not query.is_thing(kind):
            stuff[kind] = int(number_of[k])
    drawn = number_of[owners.owner]
    segments = []
    for number, queries in enumerate(joined, start=1):
        kind = int(category[queries[0]])
        segments.append(
            _segment(
                drawn == number,
                number,
                kind,
                query,
                float(best[queries[0]]),
                np.asarray(logits[queries]).max(0),
            )
        )
    return Panoptic(drawn, segments, categories(query))


def instances(logits: Value, scores: Floats, query: Classes, sizes: Sizes) -> Instances:
    """The Q best pairs of query and class; best first. Of a panoptic query, only those of things."""
    count, classes = scores.shape[0], scores.shape[1] - 1
    chance = softmax(scores)[:, :classes].ravel()
    pairs = np.argsort(-chance, kind="stable")[:count]
    enlarged = Enlarged(logits, sizes)
    found: list[tuple[int, float, str, int]] = []
    for pair in pairs:
        q, kind = divmod(int(pair), classes)
        listed = query.task != "panoptic" or query.is_thing(kind)
        if listed and float(chance[pair]) * ROUNDING >= query.min_score:
            found.append((q, float(chance[pair]) * enlarged(q)[1], query.names[kind], kind))
    found = sorted((one for one in found if one[1] >= query.min_score), key=lambda one: -one[1])
    masks = enlarged.masks([one[:3] for one in found])
    return Instances(sizes.original, masks, [one[3] for one in found], categories(query))


def semantic_bands(
    logits: Value, scores: Floats, sizes: Sizes, order: str = "probabilities"
) -> Iterator[tuple[slice, Floats]]:
    """Rows of the picture and what each class (C, rows, W) sums up to there; `order` as in classes.py."""
    weights = softmax(scores)[:, :-1]
    return class_bands(np.asarray(logits), weights, sizes.square, sizes.content, sizes.original, order)


def semantic(logits: Value, scores: Floats, query: Classes, sizes: Sizes) -> Semantic:
    """The class with the largest sum at each pixel; the background is no candidate."""
    chance = softmax(scores)[:, :-1]
    logits = np.asarray(logits)  # all of it is read here
    drawn, area, share = class_map(logits, chance, sizes.square, sizes.content, sizes.original)
    surest = chance.argmax(0)  # query of each class
    segments = [
        _segment(drawn == k, int(k), int(k), query, float(share[k]), logits[surest[k]])
        for k in np.argsort(-area, kind="stable")[: np.count_nonzero(area)]
    ]
    return Semantic(drawn, segments, categories(query))


def referred(logits: Value, scores: Floats, query: Refer, sizes: Sizes) -> Answer:
    """scores (Q, 1). The best mask, or all above SEVERAL_SCORE_MIN, best first."""
    chance, enlarged = probability(scores[:, 0]), Enlarged(logits, sizes)
    # No more masks can be above the limit than queries are.
    above = int(np.count_nonzero(chance * np.float32(ROUNDING) > SEVERAL_SCORE_MIN)) if query.several else 0
    found = ranked(chance, enlarged, max(1, above))
    found = [one for one in found if one[1] > SEVERAL_SCORE_MIN and query.several] or found[:1]
    if found[0][1] < query.none_below:
        found = []
    label = " ".join(query.sentences)
    return Answer("", [], enlarged.masks([(q, score, label) for q, score in found]), {})


def of_regions(logits: Value, scores: Floats, labels: Sequence[str], sizes: Sizes) -> Answer:
    """scores (Q, R). The best mask of each region, in their order."""
    chance, enlarged = probability(scores), Enlarged(logits, sizes)
    best = [ranked(chance[:, r], enlarged, 1)[0] for r in range(scores.shape[1])]
    return Answer(
        "", [], enlarged.masks([(q, s, label) for (q, s), label in zip(best, labels, strict=True)]), {}
    )


def ranked(chance: Floats, enlarged: Enlarged, count: int) -> list[tuple[int, float]]:
    """The `count` queries (or all) with the highest chance * mean probability of their mask, best first.

    The mean is at most 1, so a query whose chance is below `count` scores already known is never enlarged.
    """
    best: list[tuple[int, float]] = []
    for q in np.argsort(-chance, kind="stable"):
        if len(best) >= count and float(chance[q]) * ROUNDING < best[count - 1][1]:
            break
        best.append((int(q), float(chance[q]) * enlarged(int(q))[1]))
        best.sort(key=lambda one: -one[1])
    return best[:count]


def softmax(scores: Floats) -> Floats:
    """Over the last axis, in float32."""
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True), np.float32)


def categories(query: Classes) -> list[Category]:
    return [Category(name, query.is_thing(k)) for k, name in enumerate(query.names)]


def _segment(
    mask: NDArray[np.bool_], number: int, kind: int, query: Classes, score: float, logits: Floats
) -> Segment:
    return Segment(
        id=number,
        category=kind,
        label=query.names[kind],
        is_thing=query.is_thing(kind),
        score=float(score),
        area=int(np.count_nonzero(mask)),
        box=box_of(mask),
        low_res_logits=logits,
    )
