"""PSALM's prompts all begin alike: that is read once in a process, and answers are those of whole prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.prefix import Head
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.recording import plain
from pixelrt.segmenter import open_bundle

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 60, 40, 3), np.uint8)
QUERIES = [Refer("the mug"), Classes(["sky", "a tree"]), Regions(points=[(20, 30)])]


@pytest.fixture(scope="module", params=[False, True], ids=["in place", "growing"])
def segmenter(request: pytest.FixtureRequest, golden_psalm_bundle: Path) -> Any:
    bundle = Bundle.read(golden_psalm_bundle)
    return open_bundle(bundle, OrtBackend(bundle, compatible=request.param))


def counted(segmenter: Any) -> tuple[Any, list[int]]:
    """A twin that has read no head yet, and how many rows each of its forwards has."""
    twin, found = plain(segmenter), []

    class Counted:
        file, memory = segmenter._language.file, segmenter._language.memory

        def __call__(self, inputs: Any, into: Any = None) -> Any:
            found.append(inputs["inputs_embeds"].shape[1])
            return segmenter._language(inputs, into)

    twin._language = Counted()  # type: ignore[attr-defined]
    twin.prefixes = Head(twin._language)  # type: ignore[attr-defined]
    return twin, found


def decoded(segmenter: Any, frame: Any, query: Any) -> tuple[np.ndarray, np.ndarray]:
    logits, scores, _ = segmenter._decode(frame, *segmenter._phrased(frame, query))
    return np.asarray(logits), np.asarray(scores)


def test_the_head_is_read_once(segmenter: Any) -> None:
    twin, read = counted(segmenter)
    whole = plain(segmenter)
    head, picture = len(segmenter.prompt.head), segmenter.image_tokens
    assert head > 1
    for number, image in enumerate(PICTURES):
        frame, other = twin.encode(image), whole.encode(image)
        for query in QUERIES:
            read.clear()
            found, wanted = decoded(twin, frame, query), decoded(whole, other, query)
            tail = len(whole._phrased(other, query)[0])
            first = query is QUERIES[0]
            before = [head] if first and number == 0 else []
            assert read == [*before, tail + (picture if first else 0)]
            for one, another in zip(found, wanted, strict=True):
                # fp32: what is read in two passes is multiplied in blocks of other sizes, and summed in another order.
                np.testing.assert_allclose(one, another, atol=2e-4 * max(1.0, np.abs(another).max()))


def test_a_cache_that_cannot_be_copied_begins_empty(segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, read = counted(segmenter)
    monkeypatch.setattr("pixelrt.language.Context.on_host", property(lambda self: False))
    found = decoded(twin, twin.encode(PICTURES[0]), QUERIES[0])
    assert len(read) == 1 and read[0] > len(segmenter.prompt.head) + segmenter.image_tokens
    whole = plain(segmenter)
    for one, another in zip(found, decoded(whole, whole.encode(PICTURES[0]), QUERIES[0]), strict=True):
        np.testing.assert_array_equal(one, another)
