"""Labels, spans and the JSON of answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from marked import labelled_spans
from pixelrt import rle
from pixelrt.masks import Answer, Mask


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Sure, the red circle [SEG] and the blue star [SEG].", ["red circle", "blue star"]),
        ("Sure, it is [SEG].", ["it"]),
        ("They are [SEG] [SEG].", ["They", "They"]),
        ("They are [SEG], [SEG] and [SEG].", ["They", "They", "They"]),
        ("The mug is [SEG]; a knife, an apple [SEG], or the spoon [SEG]!", ["mug", "apple", "spoon"]),
        ("[SEG]", [""]),
        ("[SEG] is it [SEG]", ["", "is it"]),
        ("Yes. [SEG] [SEG]", ["", ""]),
        ("Look: the 3.5 mm jack [SEG]", ["3.5 mm jack"]),
        (
            "the island [SEG] and another area [SEG]",
            ["island", "another area"],
        ),  # no "is" or "a" inside words
        ("andiron [SEG]", ["andiron"]),
        ("the iris [SEG]", ["iris"]),
        ("AND THE CAT IS [SEG]", ["CAT"]),
        ("the [SEG]", [""]),
        ("line one\nthe tall\ntree [SEG]", ["line one\nthe tall\ntree"]),
        ("There is no zebra.", []),
        ("", []),
    ],
)
def test_labels(text: str, labels: list[str]) -> None:
    found = labelled_spans(text)
    assert [label for label, _ in found] == labels
    assert all(text[start:end] == "[SEG]" for _, (start, end) in found)
    assert [span for _, span in found] == sorted({span for _, span in found})


def test_long_blanks() -> None:
    """200,000 of them: at a cost that grows with the square of it this would not come back within the hour."""
    blanks = " " * 200_000
    found = labelled_spans(
        f"[SEG]{blanks}x{blanks}is [SEG]{blanks},{blanks}and{blanks}[SEG]{blanks}or x [SEG]"
    )
    assert [label for label, _ in found] == ["", "x", "x", "x"]
    assert labelled_spans(f"x{blanks}y [SEG]")[0][0] == f"x{blanks}y"


def test_other_marker() -> None:
    assert labelled_spans("the cat <m>.", "<m>") == [("cat", (8, 11))]


def test_json_is_plain() -> None:
    plane = np.zeros((4, 6), bool)
    plane[1:3, 2:5] = True
    box = tuple(np.array([2, 1, 5, 3], np.int32))
    mask = Mask(plane, np.float32(0.5), "cat", (4, 9), box, np.zeros((2, 2), np.float32))  # type: ignore[arg-type]
    empty = Mask(np.zeros((4, 6), bool), 0.0, "", None, None, np.zeros((2, 2), np.float32))
    answer = Answer("the [SEG]", [np.int64(3), 4], [mask, empty], {"encode": 1.23456})  # type: ignore[list-item]
    document = json.loads(json.dumps(answer.to_json()))
    assert document["token_ids"] == [3, 4] and document["timing_ms"] == {"encode": 1.235}
    assert document["finished"] is True
    assert Answer("", [], [], {}, finished=False).to_json()["finished"] is False
    first, second = document["masks"]
    assert first["label"] == "cat" and first["score"] == 0.5 and first["span"] == [4, 9]
    assert first["box"] == [2, 1, 5, 3] and first["area"] == 6 == mask.area
    assert np.array_equal(rle.decode(first["rle"]), plane)
    assert second["box"] is None and second["span"] is None and second["area"] == 0
