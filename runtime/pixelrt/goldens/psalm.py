"""PSALM's golden questions, one of each kind of condition, and the walk through its graphs that they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pixelrt_kernels.upsample_mask.probability import probability

from pixelrt.engine import Array
from pixelrt.families.psalm import Psalm
from pixelrt.families.psalm_prompt import tail_of
from pixelrt.goldens.file import Goldens
from pixelrt.goldens.take import Take
from pixelrt.image import Rgb, prepare
from pixelrt.language import Context
from pixelrt.masks import Answer
from pixelrt.queries import Classes, Query, Refer, Regions
from pixelrt.segmenter import Frame

MAX_NEW_TOKENS = 0  # there is no decoding
# How far the best query must lead the second for its mask to be compared: scores are probabilities.
LEAD_MIN = 0.05


def questions(seg: Psalm) -> dict[str, Query]:
    return {
        "sentence": Refer("the red circle"),
        "class": Classes(["red circle", "blue square", "green triangle"]),
        "region": Regions(points=[(85, 120)], boxes=[(180, 80, 271, 171)]),
    }


def walk(seg: Psalm, picture: Rgb, asked: Mapping[str, str | Query], most: int, take: Take) -> None:
    """most: of no meaning here."""
    prepared = prepare(picture, seg.image_spec)
    pixels = prepared.pixels
    out = seg._encoder({"pixels": pixels})
    for name, value in out.items():
        take.see("encoder", name, value)
    if (seg._encoder.memory.most("pixels", 0) or 1) > 1:
        for name, value in seg._encoder({"pixels": np.concatenate([pixels[..., ::-1], pixels])}).items():
            take.see("encoder", name, np.asarray(value)[1:], how="as the second of two pictures")
    tokens = take.fix("image_tokens", out.pop("image_tokens"))[0]
    visible, context = np.ones(len(tokens), np.bool_), Context(seg._language, 0)
    frame = Frame(picture, prepared.content, tokens, visible, out, seg.bundle.sha256, {}, context)
    for label, query in asked.items():
        assert isinstance(query, Classes | Refer | Regions)
        tail = tail_of(seg.prompt, query)
        vectors = seg.region_vectors(frame, query) if isinstance(query, Regions) else None
        read = seg._read(frame, tail, vectors)
        given: dict[str, Any] = {"condition_kind": np.array([seg.condition_kinds[tail.kind]], np.int64)}
        for name, value in read.items():
            take.see("language", f"{label}.{name}", value)
            given[name] = take.fix(f"{label}.{name}", value)
        drawn = seg._pixel_decoder({**given, **frame.features})
        for name, value in drawn.items():
            take.see("pixel_decoder", f"{label}.{name}", value)
        logits, scores = np.asarray(drawn["mask_logits"])[0], np.asarray(drawn["scores"])[0]
        best, lead = best_query(logits, scores[:, 0])
        take.fix(f"{label}.lead", np.array([lead], np.float32))
        take.fix(f"{label}.masks", logits[best][None])


def best_query(logits: Array, scores: Array) -> tuple[int, float]:
    """The query that `segment` takes for condition 0, by its rule on masks that were not enlarged, and its lead."""
    chances = probability(np.asarray(logits, np.float32))
    inside = np.asarray(logits) > 0
    mean = (chances * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
    ranks = probability(np.asarray(scores, np.float32)) * mean
    order = np.argsort(-ranks, kind="stable")
    lead = float(ranks[order[0]] - ranks[order[1]]) if len(order) > 1 else 1.0
    return int(order[0]), lead


def answers(seg: Psalm, goldens: Goldens) -> Iterator[tuple[str, list[int], list[Array], Answer]]:
    """Label, no tokens, the golden mask of the best query, and the answer that `segment` gives here; twice over."""
    frame = seg.encode(goldens.picture)
    for turn in ("", ", once more"):
        for label, query in goldens.questions.items():
            answer: Any = seg.segment(frame, query)
            clear = goldens.given[f"{label}.lead"][0] >= LEAD_MIN and not isinstance(query, Classes)
            yield label + turn, [], list(goldens.given[f"{label}.masks"]) if clear else [], answer
