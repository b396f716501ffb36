"""Colours that stay apart for colour-blind readers too."""

from __future__ import annotations

import numpy as np
import pytest
from pixelrt import palette


def nearest_pair(count: int) -> float:
    """Smallest distance among the first `count` colours, for the sight that tells them apart least."""
    lab = palette._lab(np.array(palette.colours(count)))
    between = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1).min(0)
    return float(between[~np.eye(count, dtype=bool)].min())


# Just noticeable is about 2.3. All seven bright colours of Okabe and Ito reach 17.
@pytest.mark.parametrize(("count", "apart"), [(2, 100), (3, 48), (8, 35), (12, 23), (24, 13), (100, 4)])
def test_every_pair_is_apart(count: int, apart: float) -> None:
    assert nearest_pair(count) > apart


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert palette.colours(100)[:5] == palette.colours(5) and palette.colours(0) == []
    assert len(palette.colours(2000)) == 2000


def test_ink_is_readable() -> None:
    for colour in palette.colours(60):
        pair = [
            float(palette._linear(np.array(c)) @ palette._XYZ[1]) for c in (colour, palette.ink_on(colour))
        ]
        assert (max(pair) + 0.05) / (min(pair) + 0.05) > 4.5  # WCAG AA
