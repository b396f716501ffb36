"""The rules that `verify` draws PSALM's masks by (torch, every mask at full size) against the runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from pixelrt.families import psalm_masks as post
from pixelrt.queries import Classes, Refer

torch = pytest.importorskip("torch", reason="needs the export extra")

from pixelrt_export.reference.psalm_masks import Planes, draw  # noqa: E402

SIZES = post.Sizes(128, (96, 128), (75, 100))
NAMES = ["a", "b", "c", "d", "e", "f"]
QUERIES = [
    Classes(NAMES),
    Classes(NAMES, things=["a", "c"]),
    Classes(NAMES, things=[]),
    Classes(NAMES, "instance"),
    Classes(NAMES, "instance", min_score=0.3),
    Classes(NAMES, "semantic"),
    Refer("it"),
    Refer("it", several=True),
    Refer("it", none_below=0.7),
]


def scene(seed: int, queries: int = 20, classes: int = 6, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap and nest, some of them faint; most sure of a class, some of the background."""
    rng = np.random.default_rng(seed)
    logits = np.full((queries, side, side), -6, np.float32)
    scores = rng.normal(0, 0.5, (queries, classes + 1)).astype(np.float32)
    for q in range(queries):
        y, x = rng.integers(0, side - 8, 2)
        h, w = rng.integers(4, side // 2, 2)
        logits[q, y : y + h, x : x + w] = rng.choice([0.4, 3.0, 6.0, -0.5])
        scores[q, rng.integers(0, classes + 1)] += rng.choice([1.0, 4.0, 6.0, 9.0])
    return logits, scores


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: str(q)[:60])
def test_the_same_masks(query: Classes | Refer) -> None:
    drawn = 0
    for seed in range(4):
        logits, scores = scene(seed)
        if isinstance(query, Refer):
            scores = scores[:, 5:6]
            wanted = post.referred(logits, scores, query, SIZES)
        else:
            rule = {"panoptic": post.panoptic, "instance": post.instances, "semantic": post.semantic}
            wanted = rule[query.task](logits, scores, query, SIZES)
        planes = Planes(torch.from_numpy(logits), SIZES.content, SIZES.original)
        found = [mask for _, mask in draw(query, torch.from_numpy(scores), planes)]
        masks = [mask.mask for mask in wanted.masks]
        assert len(found) == len(masks)
        # The two resize in different orders: a pixel whose logit is nearly 0 may fall on either side.
        assert all(int((a != b).sum()) <= 2 for a, b in zip(found, masks, strict=True))
        drawn += len(found)
    assert drawn


def test_regions_take_the_best_query_of_each() -> None:
    from pixelrt.queries import Regions

    query = Regions(points=[(1, 1), (2, 2)])
    logits, scores = scene(5)
    wanted = post.of_regions(logits, scores[:, :2], ["a", "b"], SIZES)
    planes = Planes(torch.from_numpy(logits), SIZES.content, SIZES.original)
    found = draw(query, torch.from_numpy(scores[:, :2]), planes)
    assert all(
        int((mask != other.mask).sum()) <= 2 for (_, mask), other in zip(found, wanted.masks, strict=True)
    )
