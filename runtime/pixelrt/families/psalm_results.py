"""What a query's mask logits and scores become, by the rule of its kind."""

from __future__ import annotations

from collections.abc import Callable

from pixelrt.engine import Array, Value
from pixelrt.families import psalm_masks as post
from pixelrt.families.psalm_video import tracked
from pixelrt.masks import Answer
from pixelrt.queries import KINDS, Classes, Query, Refer, Regions
from pixelrt.results import Instances, Panoptic, Semantic, Tracked

Result = Panoptic | Instances | Semantic | Answer | Tracked
RULES: dict[str, Callable[..., Panoptic | Instances | Semantic]] = {
    "panoptic": post.panoptic,
    "instance": post.instances,
    "semantic": post.semantic,
}


def result_of(query: Query, logits: Value, scores: Array, sizes: post.Sizes) -> Result:
    """logits (Q, h, w), scores (Q, K)."""
    if isinstance(query, Classes):
        return RULES[query.task](logits, scores, query, sizes)
    if isinstance(query, Refer):
        return post.referred(logits, scores, query, sizes)
    if isinstance(query, Regions):
        return post.of_regions(logits, scores, labels_of(query), sizes)
    return tracked(logits, scores, labels_of(query.regions), sizes)


def labels_of(regions: Regions) -> list[str]:
    """`point 1`, `box 2`, ... numbered through."""
    return [f"{KINDS[kind]} {number}" for number, (kind, _) in enumerate(regions.each(), start=1)]
