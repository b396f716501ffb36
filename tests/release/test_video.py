"""Pipeline and tracking with the shipped checkpoints: the answers are those of asking one by one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt.evaluation.measures import iou
from pixelrt.image import open_image
from pixelrt.pipeline import Pipeline
from pixelrt.tracking import Tracking

MOST = 60  # tokens; the longest of these answers has fewer


@pytest.fixture(scope="module")
def words(tiny_bundle: Path) -> pixelrt.Segmenter:
    segmenter: Any = pixelrt.load(tiny_bundle)
    segmenter.drafts = (
        None  # a drafted pass adds numbers up in another order: scores would differ in the last digit
    )
    loaded: pixelrt.Segmenter = segmenter
    return loaded


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[np.ndarray]:
    return [open_image(root / "calib_data" / f"scene_{n:02}.png") for n in (1, 2, 4)]


def same(a: Any, b: Any) -> None:
    assert a.text == b.text and len(a.masks) == len(b.masks)
    for one, other in zip(a.masks, b.masks, strict=True):
        assert (one.label, one.score, one.box) == (other.label, other.score, other.box)
        assert np.array_equal(one.mask, other.mask)


def piped(pipeline: Pipeline, pictures: list[np.ndarray]) -> list[Any]:
    def feed() -> None:
        for number, picture in enumerate(pictures):
            pipeline.put(picture, number, wait=True)
        pipeline.close(drain=True)

    thread = threading.Thread(target=feed)
    thread.start()
    found = list(pipeline)
    thread.join()
    assert [delivery.tag for delivery in found] == list(range(len(pictures)))
    assert not [delivery.error for delivery in found if delivery.error]
    return [delivery.answer for delivery in found]


@pytest.mark.parametrize("deadline_ms", [None, 1e9])
def test_two_threads_answer_as_one(
    words: pixelrt.Segmenter, pictures: list[np.ndarray], deadline_ms: float | None
) -> None:
    question = "Segment the striped shapes."
    with Pipeline(words, question, deadline_ms, max_new_tokens=MOST) as pipeline:
        for got, picture in zip(piped(pipeline, pictures * 2), pictures * 2, strict=True):
            same(got, words.segment(picture, question, max_new_tokens=MOST))


def test_psalm_in_two_threads(psalm_bundle: Path, pictures: list[np.ndarray], class_names: list[str]) -> None:
    """A frame's cache is made by the thread that encodes it and filled by the other one."""
    psalm, query = pixelrt.load(psalm_bundle), pixelrt.Classes(class_names)
    with Pipeline(psalm, query) as pipeline:
        for got, picture in zip(piped(pipeline, pictures), pictures, strict=True):
            same(got, psalm.segment(picture, query))


def test_targets_are_drawn_in_their_own_frame_as_they_were(
    words: pixelrt.Segmenter, pictures: list[np.ndarray]
) -> None:
    """Bit for bit: it is the same graph with the same numbers."""
    tracking = Tracking(words, "Segment the red circle and the blue star.", max_new_tokens=MOST)
    frame = words.encode(pictures[0])
    first, second = tracking.step(frame), tracking.step(frame)
    assert not tracking.asked and set(second.timing) == {"pixel_decoder", "upsample"}
    assert len(first.masks) == 2
    same(second, first)


def test_objects_are_found_where_they_went(words: pixelrt.Segmenter, pictures: list[np.ndarray]) -> None:
    """The picture wanders by 8 of 192 pixels a frame, and so do the masks: better than one frame behind."""
    tracking = Tracking(words, "Segment the red circle and the blue star.", max_new_tokens=MOST, drift=0)
    moved = [np.roll(pictures[0], 8 * t, axis=1) for t in range(4)]
    with Pipeline(words, tracking) as pipeline:
        first, *later = piped(pipeline, moved)
    assert tracking.questions == 1 and first.masks
    for t, answer in enumerate(later, start=1):
        assert [mask.label for mask in answer.masks] == [mask.label for mask in first.masks]
        for mask, old in zip(answer.masks, first.masks, strict=True):
            wanted, behind = (np.roll(old.mask, 8 * n, axis=1) for n in (t, t - 1))
            assert iou(mask.mask, wanted) > iou(behind, wanted)
