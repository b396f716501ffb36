"""The JSON form of a question, in recordings and over HTTP."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pixelrt import query_json, rle
from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer, Regions, Track

SIZE = (6, 8)
LEFT = np.zeros(SIZE, bool)
LEFT[:, :3] = True
QUERIES = [
    "Segment the mug.",
    Classes(["mug", "sky"], things=["mug"]),
    Classes(["mug"], "instance", min_score=0.25),
    Classes(["mug"], "semantic"),
    Refer(["the mug", "the cup"], several=True, none_below=0.5),
    Regions(
        points=[(1, 2), [(3, 4), (5, 5)]], scribbles=[[(0, 0), (7, 5)]], boxes=[(1, 1, 4, 4)], masks=[LEFT]
    ),
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: type(query).__name__)
def test_there_and_back(query: Any) -> None:
    entry = json.loads(json.dumps(query_json.to_json(query)))
    back = query_json.from_json(entry, SIZE)
    if not isinstance(query, Regions):
        assert back == query
        return
    assert isinstance(back, Regions) and np.array_equal(back.masks[0], LEFT)
    assert (back.points, back.scribbles, back.boxes) == (query.points, query.scribbles, query.boxes)


def test_what_is_left_out_has_the_usual_value() -> None:
    assert query_json.from_json({"task": "panoptic", "classes": ["mug"]}, SIZE) == Classes(["mug"])
    assert query_json.from_json({"task": "referring", "prompt": "the mug", "several": None}, SIZE) == Refer(
        "the mug"
    )
    assert query_json.from_json({"task": "interactive", "boxes": [[1, 2, 3, 4]]}, SIZE).boxes == (
        (1, 2, 3, 4),
    )


REFUSED = [
    (None, "the query is None"),
    ({}, "neither a prompt nor a task"),
    ({"prompt": 5}, "prompt is 5. Give a text."),
    ({"prompt": ["a"]}, "prompt is ['a']. Give a text."),
    ({"task": ["panoptic"]}, "the task is ['panoptic']"),
    ({"prompt": "x", "points": [[1, 2]]}, "the query has 'points', but it needs a task"),
    ({"task": "panoptic", "classes": ["a"], "points": []}, "but the task panoptic does not take it"),
    ({"task": "panoptic"}, "the task panoptic needs class names"),
    ({"task": "panoptic", "classes": "mug"}, "classes is 'mug'. Give a list."),
    ({"task": "panoptic", "classes": ["a"], "things": [1]}, "things is [1]"),
    ({"task": "instance", "classes": ["a"], "min_score": True}, "min_score is True. Give a number."),
    ({"task": "instance", "classes": ["a"], "min_score": float("nan")}, "min_score is nan"),
    ({"task": "referring", "prompt": "x", "several": 1}, "several is 1. Give true or false."),
    ({"task": "referring"}, "the task referring takes a prompt"),
    ({"task": "interactive", "points": [[10**400, 1]]}, "one of the points is"),
    ({"task": "interactive", "masks": [{"size": [6, 8]}]}, "a mask is no RLE"),
    ({"task": "interactive", "masks": [{"size": [8, 6], "counts": "0"}]}, "a region has size [8, 6]"),
    ({"task": "interactive", "masks": [{"size": [6.0, 8], "counts": "06Z1"}]}, None),
]


@pytest.mark.parametrize(("entry", "sentence"), REFUSED, ids=[str(entry)[:50] for entry, _ in REFUSED])
def test_refused(entry: Any, sentence: str | None) -> None:
    if sentence is None:  # 6.0 is 6 in JSON
        assert query_json.from_json(entry, SIZE).masks[0].sum() == 6
        return
    with pytest.raises(InputError) as refused:
        query_json.from_json(entry, SIZE)
    assert sentence in str(refused.value)


def test_two_pictures_cannot_be_written() -> None:
    with pytest.raises(InputError, match="two pictures"):
        query_json.to_json(
            Track(np.zeros((6, 8, 3), np.uint8), Regions(masks=[rle.decode(rle.encode(LEFT))]))
        )
