"""Queries refuse what makes no sense, in one sentence, when they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer, Regions, Track, refuse
from pixelrt.segmenter import open_bundle

BAD: list[tuple[Any, str]] = [
    (lambda: Classes([]), "no class name"),
    (lambda: Classes("person"), "a list of class names"),
    (lambda: Classes(["person", " "]), "is no class name"),
    (lambda: Classes(["person", 3]), "3 is no class name"),
    (lambda: Classes(["sky", "person", "sky "]), "'sky' is given more than once"),
    (lambda: Classes([str(i) for i in range(1001)]), "1,001 classes"),
    (lambda: Classes(["sky"], task="all"), "Choose one of: panoptic"),
    (lambda: Classes(["sky"], things=["tree"]), "'tree'"),
    (lambda: Classes(["sky"], things="sky"), "things names 'sky'"),
    (lambda: Classes(["sky"], min_score=2), "from 0 to 1"),
    (lambda: Refer(""), "is no sentence"),
    (lambda: Refer([]), "no sentence"),
    (lambda: Refer("mug", none_below=-1), "from 0 to 1"),
    (lambda: Regions(), "0 regions"),
    (lambda: Regions(points=[(i, i) for i in range(101)]), "101 regions"),
    (lambda: Regions(points=[(1, 2, 3)]), "one of the points"),
    (lambda: Regions(points=["a"]), "one of the points"),
    (lambda: Regions(points=[(1, float("nan"))]), "one of the points"),
    (lambda: Regions(scribbles=[[]]), "one of the scribbles"),
    (lambda: Regions(boxes=[(5, 5, 5, 9)]), "a box is"),
    (lambda: Regions(boxes=[(1, 2, 3)]), "a box is"),
    (lambda: Regions(boxes=[None]), "a box is"),
    (lambda: Regions(masks=[np.zeros((4, 4))]), "is empty"),
    (lambda: Regions(masks=[np.ones((4, 4, 3))]), r"shape \(4, 4, 3\)"),
    (lambda: Regions(masks=["first.png"]), "one of the masks"),
    (lambda: Track("picture.png", [(1, 2)]), "Track takes Regions"),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_classes() -> None:
    query = Classes([" person ", "sky"], things=["person"])
    assert query.names == ("person", "sky") and query.is_thing(0) and not query.is_thing(1)
    assert Classes(["a", "b"]).is_thing(1)
    assert not Classes(["a", "b"], things=[]).is_thing(0)
    assert len(Classes([str(i) for i in range(1000)]).names) == 1000


def test_refer() -> None:
    assert Refer(" the red mug ").sentences == ("the red mug",)
    assert Refer(["a", "b"]).sentences == ("a", "b")


def test_regions_in_the_order_of_the_answers() -> None:
    mask = np.eye(5, dtype=np.uint8)
    regions = Regions(
        masks=[mask], boxes=[(0.2, 1, 3.1, 4)], points=[(1.9, 2), [(3, 4), (5, 6)]], scribbles=[mask]
    )
    kinds = [kind for kind, _ in regions.each()]
    assert kinds == ["points", "points", "scribbles", "boxes", "masks"] and len(regions) == 5
    assert regions.points == (((1, 2),), ((3, 4), (5, 6)))
    assert regions.boxes == ((0, 1, 4, 4),)
    assert regions.masks[0].dtype == bool and regions.scribbles[0].shape == (5, 5)


def test_refuse_names_what_is_taken() -> None:
    error = refuse(Classes(["a"]), "toy", {"a question in words": "Segment the mug."})
    assert (
        str(error)
        == "a toy bundle cannot answer a Classes query. It takes a question in words (Segment the mug.)."
    )


def test_a_family_of_words_refuses_queries(golden_bundle_a: Path) -> None:
    segmenter = open_bundle(Bundle.read(golden_bundle_a))
    picture = np.zeros((20, 30, 3), np.uint8)
    for query in (Classes(["sky"]), Refer("the mug"), Regions(points=[(1, 2)])):
        with pytest.raises(
            InputError, match=r"a pixellm bundle cannot answer a \w+ query\. It takes a question"
        ):
            segmenter.segment(picture, query)
