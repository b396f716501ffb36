"""Run-length encoding against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pixelrt import rle
from pixelrt.errors import InputError


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    found = [np.zeros((1, 1), bool), np.ones((1, 1), bool), np.zeros((7, 33), bool), np.ones((33, 7), bool)]
    found += [rng.random((int(h), int(w))) < rng.random() for h, w in rng.integers(1, 50, (200, 2))]
    # Long runs (numbers of several groups, up and down) and a chequered plane (as many runs as pixels).
    for _ in range(20):
        plane = np.zeros((700, 900), bool)
        for y, x, h, w in rng.integers(1, 500, (4, 4)):
            plane[y : y + h, x : x + w] ^= True
        found.append(plane)
    found.append(np.indices((31, 30)).sum(0) % 2 == 0)
    found.append(np.pad(np.ones((1, 1), bool), ((4999, 0), (3000, 0))))
    return found


def test_equals_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        got = rle.encode(mask)
        wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert got == {"size": list(mask.shape), "counts": wanted["counts"].decode("ascii")}
        assert int(coco.area(got)) == mask.sum()


def test_there_and_back() -> None:
    for mask in masks():
        code = rle.encode(mask)
        assert all(type(side) is int for side in code["size"])
        back = rle.decode(code)
        assert back.dtype == np.bool_ and np.array_equal(back, mask)
        assert rle.area(code) == mask.sum()


def test_views_and_numbers() -> None:
    mask = np.random.default_rng(1).random((20, 31)) < 0.5
    assert rle.encode(mask[::-2, ::3]) == rle.encode(mask[::-2, ::3].copy())
    assert rle.encode(mask.astype(np.uint8) * 255) == rle.encode(mask)


@pytest.mark.parametrize("counts", ["", "5", "60001", "P", "\n", "~~~", "\u00e9", "o" * 40 + "0", "8"])
def test_refuses_what_is_no_rle(counts: str) -> None:
    with pytest.raises(InputError, match="RLE"):
        rle.decode({"size": [3, 2], "counts": counts})


def test_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match="shape"):
        rle.encode(np.zeros((1, 2, 3), bool))
