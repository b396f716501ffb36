"""MUSE's matching of drawn masks with wanted ones, and what a question then scores.

cost[i, j] = mean binary cross-entropy of logits i to mask j + Dice loss of the two      (Hungarian, smallest sum)

The original takes both at 12,544 random points of the picture (`match_pred` of PixelLM's utils/matcher.py); here they
are what those points give on average, from all pixels, so that a run repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels.upsample_mask.chain import Chain

from pixelrt.errors import MissingExtra
from pixelrt.evaluation.measures import Bits, overlap
from pixelrt.masks import Mask
from pixelrt.segmenter import Frame

POINTS = 12544  # enter through the 1 that the original adds above and below Dice's fraction

Floats = NDArray[np.float64]


def full_logits(mask: Mask, frame: Frame) -> Floats:
    """(H, W), by the chain that made the mask."""
    size = (frame.image.shape[0], frame.image.shape[1])
    low_res = np.asarray(mask.low_res_logits, np.float32)
    chain = Chain.of(low_res[None], max(frame.content), frame.content, size)
    return np.asarray(chain.rows(low_res, slice(0, size[0])), np.float64)


def costs(logits: Sequence[Floats], wanted: Sequence[Bits]) -> Floats:
    """(drawn, wanted)."""
    table = np.zeros((len(logits), len(wanted)))
    for i, x in enumerate(logits):
        chance = np.exp(-np.logaddexp(0, -x))
        away = np.logaddexp(0, x).mean()  # of cross-entropy with an empty mask
        for j, mask in enumerate(wanted):
            share = float(mask.mean())
            entropy = away - float(x[mask].sum()) / mask.size
            both = float(chance[mask].sum()) / mask.size
            dice = 1 - (2 * POINTS * both + 1) / (POINTS * (float(chance.mean()) + share) + 1)
            table[i, j] = entropy + dice
    return table


def matched(cost: Floats) -> list[tuple[int, int]]:
    """The pairs of the assignment with the smallest sum."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy, which finds MUSE's assignment,", "eval") from error
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(cost), strict=True)]


def paired_overlaps(
    drawn: Sequence[Bits], wanted: Sequence[Bits], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pixels in both and in either: of the pairs, then of what has no partner, with an empty mask."""
    found = [overlap(drawn[i], wanted[j]) for i, j in pairs]
    lone = [mask for j, mask in enumerate(wanted) if j not in {j for _, j in pairs}]
    lone += [mask for i, mask in enumerate(drawn) if i not in {i for i, _ in pairs}]
    return found + [(0, int(np.count_nonzero(mask))) for mask in lone]
