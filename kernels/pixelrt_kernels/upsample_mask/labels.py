"""Which of N masks owns each pixel, and the areas that overlap rules ask for     (numpy, the specification)

    p[n, y, x]  = probability(out[n, y, x])                  out: chain.py
    owner[y, x] = arg max over n of score[n] * p[n, y, x]    the first of equals
    won[n]      = pixels that n owns
    whole[n]    = pixels with p[n] >= 0.5
    kept[n]     = pixels that n owns with p[n] >= 0.5

Source: PSALM, `panoptic_inference`, whose arg max takes N full-size planes. Here a band of rows is held of one
mask at a time, with the best product and the best mask's p so far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.upsample_mask.chain import Chain
from pixelrt_kernels.upsample_mask.probability import Floats, probability
from pixelrt_kernels.upsample_mask.reference import BAND_PIXELS


class Owners(NamedTuple):
    owner: NDArray[np.int16]  # (H, W) index of the mask; -1 where its p is below 0.5
    won: NDArray[np.int64]  # (N,)
    whole: NDArray[np.int64]  # (N,)
    kept: NDArray[np.int64]  # (N,)


def label_map(
    low_res: Floats,
    scores: Floats,
    square: int,
    content: tuple[int, int],
    original: tuple[int, int],
) -> Owners:
    """low_res (N, h, w) logits, scores (N,), N below 32768; the rest as `upsample_mask` takes it.

    Raises:
        ValueError: sizes that make no sense, another number of scores than masks, or too many masks.
    """
    chain = Chain.of(low_res, square, content, original)
    check_scores(low_res, scores)
    owner = np.full(original, -1, np.int16)
    won, whole, kept = (np.zeros(len(low_res), np.int64) for _ in range(3))
    for part in chain.bands(BAND_PIXELS) if len(low_res) else ():
        best = np.full((part.stop - part.start, original[1]), -1, np.float32)
        index, of_best = np.zeros(best.shape, np.int16), np.zeros(best.shape, np.float32)
        for n, (plane, score) in enumerate(zip(low_res, scores, strict=True)):
            p = probability(chain.rows(plane, part))
            whole[n] += np.count_nonzero(p >= 0.5)
            product = p * np.float32(score)
            better = product > best
            np.copyto(best, product, where=better)
            np.copyto(of_best, p, where=better)
            index[better] = n
        won += np.bincount(index.ravel(), minlength=len(low_res))
        kept += np.bincount(index[of_best >= 0.5], minlength=len(low_res))
        owner[part] = np.where(of_best >= 0.5, index, -1)
    return Owners(owner, won, whole, kept)


def check_scores(low_res: Floats, scores: Floats) -> None:
    """Raises ValueError as `label_map` does."""
    if scores.shape != low_res.shape[:1] or len(low_res) > np.iinfo(np.int16).max:
        raise ValueError(
            f"need one score a mask, below 32768 of them, got {scores.shape} for {len(low_res)} masks"
        )
