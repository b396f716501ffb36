"""The overlay picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from marked import labelled_spans
from PIL import Image
from pixelrt.masks import Mask
from pixelrt.overlay import ALPHA, LONG_SIDE_MAX, LONG_SIDE_MIN, draw, grown, painted
from pixelrt.palette import colours

TEXT = "Sure, the red circle [SEG] and the blue star [SEG]."


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    ys, xs = np.indices(shape)
    return (ys - y) ** 2 + (xs - x) ** 2 < radius**2


def masks_of(planes: Sequence[np.ndarray], text: str = TEXT) -> list[Mask]:
    places = labelled_spans(text) + [("thing", None)] * len(planes)
    low_res = np.zeros((1, 1), np.float32)
    return [
        Mask(plane, 0.9, label, span, (0, 0, 1, 1) if plane.any() else None, low_res)
        for plane, (label, span) in zip(planes, places, strict=False)
    ]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 64), (960, 960)), ((1, 1), (960, 960)), ((60, 96), (960, 600)), ((1080, 1920), (1920, 1080)),
     ((4320, 7680), (2560, 1440)), ((1, 3000), (2560, 1)), ((3000, 1), (1, 2560)), ((151, 101), (707, 1057))],
)  # fmt: skip
def test_size_and_place_of_the_panel(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 128, np.uint8)
    plane = np.zeros(shape, bool)
    plane[shape[0] // 3 : shape[0] // 2 + 1, shape[1] // 3 : shape[1] // 2 + 1] = True
    got = draw(image, masks_of([plane]), "Where is it?", TEXT)
    assert LONG_SIDE_MIN <= max(size) <= LONG_SIDE_MAX
    if size[1] > 1.25 * size[0]:  # tall: the panel stands beside
        assert got.width > size[0] and got.height >= size[1]
        panel = np.asarray(got)[:, size[0] :]
    else:
        assert got.width >= size[0] and got.height > size[1]
        panel = np.asarray(got)[size[1] :]
    assert (panel == 255).mean() > 0.5 and (panel < 100).any()  # paper and ink


def test_without_masks_or_words_the_picture_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (800, 1000, 3), dtype=np.uint8)
    got = np.asarray(draw(image, []))
    assert np.array_equal(got[:800, :1000], image) and got.shape[0] <= 801


def test_fill_outline_and_untouched_surroundings() -> None:
    image = np.full((900, 1200, 3), 90, np.uint8)
    plane = disc((900, 1200), 450, 600, 200)
    before = image.copy()
    got = np.asarray(draw(image, masks_of([plane])))[:900, :1200].astype(int)
    assert np.array_equal(image, before)
    colour = np.array(colours(1)[0])
    assert np.abs(got[500, 650] - (90 * (1 - ALPHA) + colour * ALPHA)).max() <= 1
    row = got[450]
    edge = int(np.flatnonzero(plane[450])[-1])
    assert (row[edge] == colour).all() and (row[edge + 1] == 255).all()
    assert (row[edge + 1 : edge + 8].max(1) < 40).any()  # the dark line
    assert (got[~grown(plane, 12)] == 90).all()


def test_outline_shows_on_any_ground() -> None:
    """Just outside a mask, something differs strongly from the picture, whatever its brightness."""
    plane = disc((960, 960), 480, 480, 200)
    ring = grown(plane, 6) & ~plane
    for level in range(0, 256, 15):
        got = np.asarray(draw(np.full((960, 960, 3), level, np.uint8), masks_of([plane])))[:960, :960].astype(
            int
        )
        assert (np.abs(got[ring] - level).min(1) > 100).mean() > 0.3


def test_two_masks_are_told_apart_and_numbered() -> None:
    shape = (960, 960)
    planes = [disc(shape, 300, 300, 150), disc(shape, 650, 650, 150)]
    got = np.asarray(draw(np.full((*shape, 3), 128, np.uint8), masks_of(planes), "?", TEXT))
    first, second = (np.array(c) for c in colours(2))
    for colour, plane in ((first, planes[0]), (second, planes[1])):
        there = (got[:960, :960] == colour).all(2)
        assert there[plane].any() and not there[~plane].any()
        assert (got[960:] == colour).all(2).any()  # in the legend
    middle = got[280:320, 280:320]
    assert (middle == first).all(2).any() and (middle.max(2) < 60).any()  # a chip with a dark number


def test_small_mask_is_not_hidden_by_its_number_nor_by_a_large_one() -> None:
    shape = (960, 960)
    small, large = disc(shape, 500, 500, 9), disc(shape, 480, 480, 300)
    got = np.asarray(draw(np.full((*shape, 3), 128, np.uint8), masks_of([small, large])))
    first, second = (np.array(colour) for colour in colours(2))
    assert ((got[:960, :960] == first).all(2) & small).sum() > 0.2 * small.sum()  # its edge
    blend = (128 * (1 - ALPHA) + second * ALPHA) * (1 - ALPHA) + first * ALPHA
    assert np.abs(got[500, 500] - blend).max() <= 1


def test_single_pixels_and_thin_lines_survive_scaling() -> None:
    dot, line = np.zeros((64, 64), bool), np.zeros((300, 7680), bool)
    dot[20, 30] = True
    line[150:152] = True  # two of the three rows that become one
    for plane, height in ((dot, 960), (line, 100)):
        got = np.asarray(draw(np.zeros((*plane.shape, 3), np.uint8), masks_of([plane])))[:height]
        assert (got == np.array(colours(1)[0])).all(2).any()


@pytest.mark.parametrize("count", [1, 3, 100])
def test_many_and_empty_masks_and_long_words(count: int) -> None:
    shape = (300, 400)
    rng = np.random.default_rng(1)
    planes = [disc(shape, *rng.integers(0, 300, 2), rng.integers(0, 30)) for _ in range(count)]
    text = "word " * 300 + "x" * 5000 + " the thing\nwith\ttabs [SEG] " * count
    got = draw(np.zeros((*shape, 3), np.uint8), masks_of(planes, text), "question " * 500, text)
    assert isinstance(got, Image.Image) and got.mode == "RGB" and got.height < 6000


def test_painted_keeps_the_size_and_the_picture() -> None:
    image = np.full((90, 130, 3), 128, np.uint8)
    large, small = disc((90, 130), 45, 60, 35), disc((90, 130), 45, 60, 9)
    shown = painted(image, masks_of([small, large]))
    assert shown.shape == image.shape and (image == 128).all()
    far = ~grown(large, 3)
    assert (shown[far] == 128).all()
    first, second = colours(2)
    mixed = np.array([128 * (1 - ALPHA) + np.array(colour) * ALPHA for colour in (first, second)])
    assert np.abs(shown[45, 90] - mixed[1]).max() <= 1  # in the large one alone
    assert (
        np.abs(shown[45, 60] - (mixed[1] * (1 - ALPHA) + np.array(first) * ALPHA)).max() <= 1
    )  # the small on top
    assert (painted(image, []) == image).all()
