"""The judge of PSALM's masks, which shares no code with the runtime, agrees with it on random decoder outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pixelrt.families import psalm_masks as post
from pixelrt.families import psalm_regions
from pixelrt.queries import Classes, Refer, Regions
from pixelrt_export.quantize.records import Record
from pixelrt_export.reference.psalm_masks import region_vectors
from pixelrt_export.verify import psalm
from pixelrt_export.verify.original import Said

SIDE, ORIGINAL = 64, (50, 37)
SIZES = post.Sizes(SIDE, (64, 47), ORIGINAL)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> psalm.PsalmOriginal:
    """Without a checkpoint: what is tested reads the size of its input alone."""
    monkeypatch.setattr(psalm, "open_image", lambda path: np.zeros((*ORIGINAL, 3), np.uint8))
    found = object.__new__(psalm.PsalmOriginal)
    found.config = SimpleNamespace(image_size=SIDE)
    return found


def decoded(seed: int, conditions: int) -> dict[str, np.ndarray]:
    """Rectangles that partly cover each other, some queries sure of a condition."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-4, 1, (1, 9, 16, 16)).astype(np.float32)
    for q in range(9):
        y, x, h, w = *rng.integers(0, 10, 2), *rng.integers(3, 9, 2)
        logits[0, q, y : y + h, x : x + w] = rng.choice([0.4, 3.0, 6.0])
    scores = rng.normal(0, 1, (1, 9, conditions)).astype(np.float32)
    scores[0, np.arange(9), rng.integers(0, conditions, 9)] += rng.choice([0, 3, 9], 9)
    return {"mask_logits": logits, "scores": scores}


@pytest.mark.parametrize("seed", range(8))
def test_panoptic(original: psalm.PsalmOriginal, seed: int) -> None:
    query, outputs = Classes(list("abcd")), decoded(seed, 5)
    got = post.panoptic(outputs["mask_logits"][0], outputs["scores"][0], query, SIZES)
    said = Said([], [mask.mask for mask in got.masks][::-1])  # in another order: they are paired
    record = Record("", "", None, query)  # type: ignore[arg-type]
    masks = original.masks(record, said, outputs)
    assert len(masks) == len(said.masks)
    # Pixels where two masks are equally likely, or whose logit is 0, may round either way.
    assert all((a != b).mean() < 2e-3 for a, b in zip(masks, said.masks, strict=True))
    drawn = original._drawn(record, outputs)
    assert sorted(kind for kind, _ in drawn) == sorted(s.category for s in got.segments)
    if said.masks:
        less = Said([], said.masks[1:])
        assert len(original.masks(record, less, outputs)) == len(
            said.masks
        )  # what the bundle lacks comes last
        more = Said([], [*said.masks, np.eye(*ORIGINAL, dtype=bool)])
        assert not original.masks(record, more, outputs)[-1].any()  # what only the bundle has finds nothing


@pytest.mark.parametrize("seed", range(8))
def test_sentences_and_regions(original: psalm.PsalmOriginal, seed: int) -> None:
    outputs = decoded(seed, 3)
    logits, scores = outputs["mask_logits"][0], outputs["scores"][0]
    got = post.of_regions(logits, scores, ["a", "b", "c"], SIZES)
    record = Record("", "", None, Regions(points=[(1, 1)] * 3))  # type: ignore[arg-type]
    masks = original.masks(record, Said([], []), outputs)
    assert all((a != b.mask).mean() < 2e-3 for a, b in zip(masks, got.masks, strict=True))
    one = {**outputs, "scores": outputs["scores"][..., :1]}
    (found,) = post.referred(logits, scores[:, :1], Refer("a"), SIZES).masks
    (mask,) = original.masks(Record("", "", None, Refer("a")), Said([], []), one)  # type: ignore[arg-type]
    assert (mask != found.mask).mean() < 2e-3


def test_region_vectors() -> None:
    """Read by grid_sample at every pixel, against the runtime's weights of tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(25, 7)).astype(np.float32)
    masks = [rng.random(ORIGINAL) < part for part in (0.01, 0.3, 1)]
    small = [psalm_regions.network_mask(mask, SIZES.content, "x") for mask in masks]
    want = psalm_regions.region_vectors(masks, tokens, SIZES.content, SIDE)
    got = region_vectors(torch.from_numpy(tokens), [torch.from_numpy(mask) for mask in small], SIDE)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)  # fp32 sums of 25 tokens of size 1
