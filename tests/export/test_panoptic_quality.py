"""The evaluation's panoptic quality against torchmetrics', an implementation of its own of COCO's definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pixelrt.evaluation.measures import counts, quality
from pixelrt_export.tiny.psalm_prompts import NAMES
from torchmetrics.detection import PanopticQuality

BACKGROUND = len(NAMES)  # a class here, so that a segment drawn on it is an invention; left out of the mean


def segments(rng: np.random.Generator, side: int, number: int) -> np.ndarray:
    """(side, side, 2) int64: class and instance; discs of random classes over a background."""
    image = np.full((side, side, 2), (BACKGROUND, 0))
    y, x = np.mgrid[:side, :side]
    for instance in range(1, number + 1):
        centre, radius = rng.integers(side, size=2), rng.integers(4, 14)
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = rng.integers(6), instance
    return image


def disturbed(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Segments moved, renamed, dropped and invented."""
    found = np.full_like(truth, (BACKGROUND, 0))
    for instance in range(1, truth[..., 1].max() + 1):
        mask = np.roll(truth[..., 1] == instance, rng.integers(-4, 5, 2), (0, 1))
        if mask.any() and rng.random() < 0.85:
            name = truth[truth[..., 1] == instance][0, 0] if rng.random() < 0.8 else rng.integers(6)
            found[mask] = name, instance
    found[:5, :5] = rng.integers(6), 99
    return found


def kinds(image: np.ndarray) -> dict[int, int]:
    """Instance -> class."""
    return {int(k): int(image[image[..., 1] == k][0, 0]) for k in np.unique(image[..., 1]) if k}


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_is_coco_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = [segments(rng, 48, rng.integers(1, 6)) for _ in range(40)]
    found = [disturbed(rng, truth) for truth in truths]
    table = sum(
        counts(t[..., 1], kinds(t), f[..., 1], kinds(f), BACKGROUND)
        for t, f in zip(truths, found, strict=True)
    )

    theirs = PanopticQuality(
        things=set(range(BACKGROUND)), stuffs={BACKGROUND}, return_per_class=True, return_sq_and_rq=True
    )
    theirs.update(torch.tensor(np.stack(found)), torch.tensor(np.stack(truths)))
    per_class = theirs.compute()[:BACKGROUND].numpy()  # (classes, 3)
    occurs = table[:, 1:].sum(1) > 0
    np.testing.assert_allclose(quality(table), per_class[occurs].mean(0), rtol=1e-6)  # theirs is float32
