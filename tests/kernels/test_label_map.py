"""Resizing by bands, label maps and class maps against torch's chain and the sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.upsample_mask import chain, classes, labels
from pixelrt_kernels.upsample_mask.classes import class_bands, class_map
from pixelrt_kernels.upsample_mask.labels import label_map
from pixelrt_kernels.upsample_mask.probability import probability
from pixelrt_kernels.upsample_mask.reference import upsample_mask

# low-res (h, w), square, content (h', w'), original (H, W)
SIZES = [
    ((1, 1), 1, (1, 1), (1, 1)),
    ((1, 1), 7, (7, 3), (33, 1)),
    ((7, 33), 33, (7, 33), (1, 7)),
    ((33, 33), 33, (33, 33), (33, 33)),
    ((27, 2), 3, (3, 2), (4, 72)),  # the first tap is not the first row
    ((32, 32), 128, (96, 128), (75, 100)),
    ((40, 40), 160, (61, 160), (33, 77)),  # smaller than the content
    ((40, 40), 160, (160, 3), (700, 9)),
]


def logits(low: tuple, count: int = 5) -> np.ndarray:
    return np.random.default_rng(low).normal(0, 3, (count, *low)).astype(np.float32)


def torch_chain(low_res: np.ndarray, square: int, content: tuple, original: tuple) -> np.ndarray:
    torch = pytest.importorskip("torch")

    def resize(x: Any, size: tuple[int, int]) -> Any:
        return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)

    x = resize(torch.from_numpy(low_res)[:, None], (square, square))
    return resize(x[..., : content[0], : content[1]], original)[:, 0].numpy()


def whole(low_res: np.ndarray, *sizes: Any) -> np.ndarray:
    resizing = chain.Chain.of(low_res, *sizes)
    return np.stack([resizing.rows(plane, slice(0, sizes[2][0])) for plane in low_res])


@pytest.mark.parametrize(("low", "square", "content", "original"), SIZES)
def test_chain_equals_torch_and_upsample_mask(
    low: tuple, square: int, content: tuple, original: tuple
) -> None:
    low_res = logits(low)
    got = whole(low_res, square, content, original)
    # Torch orders the sum differently for narrow planes: two units in the last place of a value near 8.
    np.testing.assert_allclose(got, torch_chain(low_res, square, content, original), rtol=0, atol=1e-6)
    assert np.array_equal(got > 0, upsample_mask(low_res, square, content, original)[0])


@pytest.mark.parametrize(("low", "square", "content", "original"), SIZES)
@pytest.mark.parametrize("pixels", [1, 300])
def test_bands_are_the_rows(low: tuple, square: int, content: tuple, original: tuple, pixels: int) -> None:
    low_res = logits(low, 1)
    resizing = chain.Chain.of(low_res, square, content, original)
    parts = list(resizing.bands(pixels))
    assert parts[0].start == 0 and parts[-1].stop == original[0]
    bands = [resizing.rows(low_res[0], part) for part in parts]
    assert np.array_equal(np.concatenate(bands), whole(low_res, square, content, original)[0])
    for part, band in zip(parts, bands, strict=True):
        source = resizing.source_rows(part)
        rows = resizing.content_rows(low_res[0], source)
        assert np.array_equal(resizing.enlarged(rows, source.start, part), band)


@pytest.mark.parametrize(("low", "square", "content", "original"), SIZES)
def test_label_map(low: tuple, square: int, content: tuple, original: tuple, monkeypatch: Any) -> None:
    monkeypatch.setattr(labels, "BAND_PIXELS", 7 * original[1])
    low_res = logits(low)
    scores = np.array([0.9, 0.95, 0.81, 0.99, 0.95], np.float32)
    low_res[4] = low_res[1]  # equal products: the first owns
    got = label_map(low_res, scores, square, content, original)
    p = probability(whole(low_res, square, content, original))
    owner = (scores[:, None, None] * p).argmax(0)
    on = np.take_along_axis(p, owner[None], 0)[0] >= 0.5
    assert np.array_equal(got.owner, np.where(on, owner, -1)) and got.owner.dtype == np.int16
    assert got.won.tolist() == [(owner == n).sum() for n in range(5)] and got.won[4] == 0
    assert got.whole.tolist() == (p >= 0.5).sum((1, 2)).tolist()
    assert got.kept.tolist() == [((owner == n) & on).sum() for n in range(5)]


def test_half_is_inside() -> None:
    """p of a logit of 0, or of one too small for float32 to tell, is 0.5 and counts."""
    low_res = np.array([0.0, -1e-9, -1e-3], np.float32)[:, None, None]
    got = label_map(low_res, np.ones(3, np.float32), 4, (4, 4), (3, 3))
    assert got.whole.tolist() == [9, 9, 0]
    extreme = np.array([-200.0, 200.0], np.float32)[:, None, None]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert label_map(extreme, np.ones(2, np.float32), 4, (4, 4), (3, 3)).won.tolist() == [0, 9]


def test_label_map_of_no_masks() -> None:
    got = label_map(np.zeros((0, 8, 8), np.float32), np.zeros(0, np.float32), 32, (32, 20), (5, 6))
    assert np.all(got.owner == -1) and got.owner.shape == (5, 6) and len(got.won) == 0


@pytest.mark.parametrize("order", ["logits", "probabilities"])
@pytest.mark.parametrize(("low", "square", "content", "original"), SIZES)
def test_class_bands(
    low: tuple, square: int, content: tuple, original: tuple, order: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(classes, "BAND_VALUES", 900)
    low_res = logits(low)
    weights = np.random.default_rng(0).dirichlet(np.full(4, 0.3), 5).astype(np.float32)
    parts = list(class_bands(low_res, weights, square, content, original, order))
    assert [part.start for part, _ in parts[1:]] == [part.stop for part, _ in parts[:-1]]
    got = np.concatenate([values for _, values in parts], axis=1)
    if order == "logits":
        p = probability(whole(low_res, square, content, original))
        wanted = np.einsum("nc,nyx->cyx", weights, p)
    else:
        p = probability(whole(low_res, square, content, content))
        wanted = whole(np.einsum("nc,nyx->cyx", weights, p), max(content), content, original)
        step = chain.Chain.of(p, max(content), content, original)
        wanted = np.stack(
            [step.enlarged(q, 0, slice(0, original[0])) for q in np.einsum("nc,nyx->cyx", weights, p)]
        )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)  # fp32 sums of five
    best = class_map(low_res, weights, square, content, original).best
    if order == "probabilities":
        assert np.array_equal(best, got.argmax(0))
        area = class_map(low_res, weights, square, content, original).area
        assert area.tolist() == [(best == c).sum() for c in range(4)]


def test_classes_that_cannot_win_are_left_out() -> None:
    """The same map with and without two thousand faint classes, one of them worth just under a quarter."""
    low_res = logits((32, 32), 6)
    low_res[0] = 1.0
    weights = np.full((6, 2000), 1e-7, np.float32)
    weights[:, :3] = np.random.default_rng(1).random((6, 3)) + 0.2
    sizes = (128, (128, 96), (60, 45))
    few = class_map(low_res, weights[:, :3], *sizes)
    many = class_map(low_res, weights, *sizes)
    assert np.array_equal(few.best, many.best)
    np.testing.assert_allclose(many.share[:3], few.share, atol=2e-3)


def test_a_class_that_wins_between_two_others_is_not_left_out() -> None:
    """Two classes are worth 1 on every other column, a third 0.8 on all: at half size it beats their means."""
    stripes = np.full((2, 64, 64), -40, np.float32)
    stripes[0, :, ::2] = stripes[1, :, 1::2] = 40
    weights = np.array([[1, 0, 0.8], [0, 1, 0.8]], np.float32)
    assert np.all(class_map(stripes, weights, 64, (64, 64), (64, 32)).best == 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: label_map(x, np.ones(2, np.float32), 32, (32, 32), (9, 9)),
        lambda x: label_map(x, np.ones(3, np.float32), 32, (33, 32), (9, 9)),
        lambda x: list(class_bands(x, np.ones((2, 4), np.float32), 32, (32, 32), (9, 9))),
        lambda x: list(class_bands(x, np.ones((3, 0), np.float32), 32, (32, 32), (9, 9))),
        lambda x: list(class_bands(x, np.ones((3, 4), np.float32), 32, (32, 32), (9, 9), "scores")),
        lambda x: class_map(x, np.ones(3, np.float32), 32, (32, 32), (9, 9)),
    ],
)
def test_refuses_what_makes_no_sense(call: Any) -> None:
    with pytest.raises(ValueError, match="need"):
        call(logits((8, 8), 3))
