"""Regions: what is painted, where the network sees it, and the vector that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.families.psalm_regions import (
    discs,
    network_mask,
    pooling_weights,
    rasterised,
    region_masks,
    region_vectors,
)
from pixelrt.queries import Regions

SQUARE, CONTENT, TOKENS = 128, (96, 128), 4
Case = Callable[[str], dict[str, Any]]


def test_resized_masks_equal_the_original(golden_psalm_case: Case) -> None:
    case = golden_psalm_case("region_box")
    for raw, wanted in zip(case["raw.prompt_masks_hw"], case["in.region_masks"], strict=True):
        got = network_mask(raw > 0, CONTENT, "a region")
        assert np.array_equal(got, wanted[: CONTENT[0], : CONTENT[1]] > 0)
        assert not wanted[CONTENT[0] :].any()


@pytest.mark.parametrize(
    ("shape", "content"), [((75, 100), (96, 128)), ((500, 333), (128, 85)), ((31, 64), (62, 128))]
)
def test_masks_are_resized_to_the_nearest_pixel(shape: tuple[int, int], content: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    ys, xs = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(content, shape, strict=True))
    assert np.array_equal(network_mask(mask, content, "it"), mask[ys][:, xs])


def test_boxes_are_filled(golden_psalm_case: Case) -> None:
    for raw in golden_psalm_case("region_box")["raw.prompt_masks_hw"]:
        ys, xs = np.nonzero(raw)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        assert np.array_equal(rasterised("boxes", box, raw.shape, "it"), raw > 0)


@pytest.mark.parametrize(("name", "tokens_of"), [("region_box", "panoptic"), ("video", "video")])
def test_vectors_at_the_points_the_original_drew(golden_psalm_case: Case, name: str, tokens_of: str) -> None:
    """It drew 256 pixels of each region; counting those instead of all pixels must give its vectors."""
    case = golden_psalm_case(name)
    tokens = golden_psalm_case(tokens_of)["projector.out"][0]
    wanted = case["llm.inputs_embeds"][0][case["seq.region_embedding_mask"] > 0]
    masks = case.get("in.vp_region_masks", case.get("in.region_masks"))
    for points, mask, vector in zip(case["region.sampled_points_yx"], masks, wanted, strict=True):
        ys, xs = np.rint(points * SQUARE).astype(int).T
        assert mask[ys, xs].all()
        count = np.zeros((SQUARE, SQUARE))
        np.add.at(count, (ys, xs), 1)
        # Both are fp32 sums of 256 values below 4.
        np.testing.assert_allclose(pooling_weights(count, SQUARE, TOKENS) @ tokens, vector, rtol=0, atol=1e-6)
        # All pixels are what the draw is on average.
        np.testing.assert_allclose(pooling_weights(mask, SQUARE, TOKENS) @ tokens, vector, rtol=0, atol=0.02)


def sampled(pixels: np.ndarray, square: int, tokens: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel, with torch's grid_sample. tokens (t, t, H)."""
    torch = pytest.importorskip("torch")
    places = np.argwhere(pixels)[:, ::-1].astype(np.float32) / square  # x, y
    grid = torch.from_numpy(2 * places - 1)[None, None]
    source = torch.from_numpy(tokens).permute(2, 0, 1)[None]
    got = torch.nn.functional.grid_sample(source, grid, mode="bilinear", align_corners=True)
    return got[0, :, 0].mean(1).numpy()


@pytest.mark.parametrize(
    ("square", "side", "shape"), [(128, 2, (128, 96)), (160, 5, (7, 160)), (1024, 16, (768, 1024))]
)
def test_pooling_equals_its_definition(square: int, side: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(side)
    tokens = rng.normal(size=(side, side, 3)).astype(np.float32)
    pixels = np.zeros(shape, bool)
    pixels[shape[0] // 3 :, shape[1] // 2 :] = (
        rng.random((shape[0] - shape[0] // 3, shape[1] - shape[1] // 2)) < 0.1
    )
    got = pooling_weights(pixels, square, side * side)
    assert got.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        got @ tokens.reshape(-1, 3), sampled(pixels, square, tokens), rtol=0, atol=2e-6
    )


def literal_discs(touched: np.ndarray, radius: int) -> np.ndarray:
    y, x = np.indices(touched.shape)
    out = np.zeros(touched.shape, bool)
    for cy, cx in np.argwhere(touched):
        out |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
    return out


@pytest.mark.parametrize("radius", [0, 1, 5, 10])
def test_discs(radius: int) -> None:
    touched = np.random.default_rng(radius).random((31, 40)) < 0.02
    touched[0, 0] = touched[-1, -1] = True
    assert np.array_equal(discs(touched, radius), literal_discs(touched, radius))


def test_points_and_scribbles() -> None:
    line = np.zeros((60, 80), bool)
    line[[10, 11, 12, 13, 14], [20, 22, 24, 26, 28]] = True
    for x in range(21, 29, 2):  # the pixels between, halves rounded to even
        line[round(10 + (x - 20) / 2), x] = True
    regions = Regions(points=[(30, 20), [(0, 0), (79, 59)]], scribbles=[[(20, 10), (28, 14)], line])
    masks = region_masks(regions, (60, 80))
    dot = np.zeros((60, 80), bool)
    dot[20, 30] = True
    assert np.array_equal(masks[0], literal_discs(dot, 10))
    dot[:] = False
    dot[0, 0] = dot[59, 79] = True
    assert np.array_equal(masks[1], literal_discs(dot, 10))
    assert np.array_equal(masks[2], literal_discs(line, 5)) and np.array_equal(masks[2], masks[3])


def literal_line(places: list[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """Every step from place to place, also those outside the picture."""
    touched = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(steps + 1):
            x, y = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
            if 0 <= x < size[1] and 0 <= y < size[0]:
                touched[y, x] = True
    return touched


@pytest.mark.parametrize("seed", range(20))
def test_a_scribble_that_leaves_the_picture(seed: int) -> None:
    random = np.random.default_rng(seed)
    places = [(int(x), int(y)) for x, y in random.integers(-60, 140, (6, 2))] + [(0, 0), (0, 59), (79, 59)]
    found = region_masks(Regions(scribbles=[places]), (60, 80))[0]
    assert np.array_equal(found, literal_discs(literal_line(places, (60, 80)), 5))


@pytest.mark.parametrize("far", [1e6, 1e12, 1e300])
def test_a_scribble_from_far_away(far: float) -> None:
    """Its length costs nothing: a hostile one would take forever."""
    found = region_masks(Regions(scribbles=[[(-far, 30), (far, 30)]]), (60, 80))[0]
    assert np.array_equal(found, literal_discs(literal_line([(0, 30), (79, 30)], (60, 80)), 5))
    with pytest.raises(InputError, match="region 1 lies outside"):
        region_masks(Regions(scribbles=[[(-far, far), (far, far)]]), (60, 80))


def test_a_disc_reaches_in_from_no_place_outside() -> None:
    """Only pixels of the picture can be touched."""
    with pytest.raises(InputError, match="region 1 lies outside"):
        region_masks(Regions(points=[(-3, 5)]), (60, 80))
    with pytest.raises(InputError, match="region 2 lies outside"):
        region_masks(Regions(boxes=[(1, 1, 2, 2), (80, 0, 90, 10)]), (60, 80))
    with pytest.raises(InputError, match="80 x 60"):
        region_masks(Regions(masks=[np.ones((80, 60), bool)]), (60, 80))


def test_a_region_that_vanishes() -> None:
    speck = np.zeros((4000, 6000), bool)
    speck[1, 1] = True
    with pytest.raises(InputError, match="region 1 has nothing left"):
        region_vectors([speck], np.zeros((4, 8), np.float32), (85, 128), 128)
