"""The kernels: by emulation on the CPU on small shapes always, on a GPU where there is one (`make gpu-check`).

Inputs are drawn anew each time, outputs are poisoned before. Sums are compared with float64; what the specification
fixes to the last bit (masks, boxes, owners) must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.deform_attn import launch as deform
from pixelrt_kernels.deform_attn.reference import deform_attn
from pixelrt_kernels.fuse_scales import launch as fuse
from pixelrt_kernels.fuse_scales.reference import combine_scales
from pixelrt_kernels.upsample_mask import labels, reference
from pixelrt_kernels.upsample_mask import launch as mask

SCORE = 1e-6
FP32, FP16 = 3e-6, 2e-3  # fp16: one rounding of a result below 4


class Poisoned:
    """A GPU whose new buffers hold nan, as float32 and as float16."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.upload, self.download, self.launch = inner.upload, inner.download, inner.launch

    def allocate(self, size: int) -> Any:
        return self.inner.upload(np.full(max(1, size), 0xFF, np.uint8))


@pytest.fixture(
    scope="module", params=["emulated", "emulated backwards", pytest.param("gpu", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param != "gpu":
        from emulation.device import EmulatedDevice

        yield EmulatedDevice(request.getfixturevalue("emulation"), backwards="back" in request.param)
        return
    from benchmarks.gpu_device import gpu_device, gpu_is_there

    try:
        found = gpu_device()
    except LookupError as missing:
        if gpu_is_there():
            pytest.fail(f"this machine has a GPU that cannot be used: {missing}")
        pytest.skip(f"no GPU to run on: {missing}")
    with found as gpu:
        yield Poisoned(gpu)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Other numbers each time; the seed is printed where a test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def large(device: Any, request: pytest.FixtureRequest) -> None:
    if "large" in request.node.callspec.id and not isinstance(device, Poisoned):
        pytest.skip("large shapes are for a GPU")


# low-res (h, w), square, content, original
MASKS = [
    ((1, 1), 1, (1, 1), (1, 1)),
    ((7, 5), 33, (33, 20), (1, 77)),
    ((9, 33), 64, (64, 41), (70, 131)),  # two blocks across, three down
    ((33, 40), 100, (61, 100), (33, 40)),  # smaller than the content
    ((27, 40), 9, (9, 5), (40, 300)),  # shrunk to the square
    ((40, 40), 160, (160, 160), (7, 9)),
]
LARGE_MASKS = [
    pytest.param(case, id=f"large {case[-1]}")
    for case in (((128, 128), 448, (252, 448), (720, 1280)), ((256, 256), 1024, (576, 1024), (2160, 3840)))
]


def planes(rng: np.random.Generator, low: tuple[int, int]) -> np.ndarray:
    """Noise, mostly outside, a blob, single pixels, nothing."""
    y, x = np.mgrid[: low[0], : low[1]]
    blob = rng.uniform(1, 20) - np.hypot(y - rng.uniform(0, low[0]), x - rng.uniform(0, low[1]))
    noise = rng.normal(0, 3, (2, *low)) - np.array([0, 6])[:, None, None]
    pixels = np.where(rng.random(low) < 0.01, 9, -1)
    return np.concatenate([noise, [blob, pixels, -np.ones(low)]]).astype(np.float32)


@pytest.mark.parametrize("case", [*MASKS, *LARGE_MASKS])
def test_upsample_bits(device: Any, rng: np.random.Generator, case: Any) -> None:
    low_res = planes(rng, case[0])
    masks, scores, boxes = reference.upsample_mask(low_res, *case[1:])
    bits, got_scores, got_boxes = mask.upsample_bits(device, low_res, *case[1:])
    assert np.array_equal(bits, np.packbits(masks, axis=2))
    np.testing.assert_allclose(got_scores, scores, rtol=0, atol=SCORE)
    assert np.array_equal(got_boxes, boxes)


def test_single_pixels(device: Any) -> None:
    """One pixel so far above the others that any share of it shows: no tile may be taken for empty that has some."""
    low_res = np.where(np.eye(42).reshape(42, 6, 7), 1e6, -1).astype(np.float32)
    for sizes in ((25, (25, 25), (97, 201)), (6, (6, 6), (65, 130))):
        masks, _, boxes = reference.upsample_mask(low_res, *sizes)
        bits, _, got_boxes = mask.upsample_bits(device, low_res, *sizes)
        assert np.array_equal(bits, np.packbits(masks, axis=2)) and np.array_equal(got_boxes, boxes)


@pytest.mark.parametrize("case", [*MASKS, LARGE_MASKS[0]])
def test_label_map(device: Any, rng: np.random.Generator, case: Any) -> None:
    low_res = planes(rng, case[0])[[0, 1, 2, 0, 3, 4]]  # equal ones: the first owns
    scores = rng.choice(np.float32([0.81, 0.9, 0.99]), len(low_res))
    scores[3] = scores[0]
    wanted = labels.label_map(low_res, scores, *case[1:])
    got = mask.label_map(device, low_res, scores, *case[1:])
    for name in wanted._fields:
        assert np.array_equal(getattr(got, name), getattr(wanted, name)), name


def test_no_masks(device: Any) -> None:
    nothing = np.zeros((0, 8, 8), np.float32)
    assert [x.shape for x in mask.upsample_bits(device, nothing, 32, (32, 20), (5, 6))] == [
        (0, 5, 1),
        (0,),
        (0, 4),
    ]
    assert np.all(mask.label_map(device, nothing, np.zeros(0, np.float32), 32, (32, 20), (5, 6)).owner == -1)


@pytest.mark.parametrize(("of", "tolerance"), [(np.float32, FP32), (np.float16, FP16)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 8), (3, 7, 33), (5, 33, 64), (2, 300, 8)])
def test_fuse_scales(device: Any, rng: np.random.Generator, shape: Any, of: Any, tolerance: float) -> None:
    previous = rng.normal(0, 5, shape[:2]).astype(np.float32)
    features, dense = rng.uniform(-1, 1, shape[1:]).astype(of), rng.uniform(-1, 1, shape[2]).astype(of)
    wanted = (1 / (1 + np.exp(-previous.astype(np.float64)[:, :, None])) + 1) * features.astype(np.float64)
    got = fuse.fuse_scales(device, previous, features, dense)
    assert got.dtype == of and got.shape == shape
    np.testing.assert_allclose(got, wanted + dense.astype(np.float64), rtol=0, atol=tolerance)


def test_combine_scales(device: Any, rng: np.random.Generator) -> None:
    masks = [rng.normal(0, 5, (2, *size)).astype(np.float32) for size in ((5, 9), (1, 3), (33, 140))]
    weights = rng.random(3).astype(np.float32)
    assert np.array_equal(fuse.combine_scales(device, masks, weights), combine_scales(masks, weights))


# images, queries, heads, width, points, levels
DEFORM: list[Any] = [
    (1, 1, 1, 1, 1, [(1, 1)]),
    (2, 37, 4, 16, 4, [(4, 5), (8, 10)]),
    (1, 7, 3, 33, 2, [(7, 1), (1, 9)]),
    (1, 35, 2, 32, 4, [(4, 4), (8, 8), (16, 16)]),
    (1, 5, 2, 4, 31, [(3, 33), (2, 2)]),  # samples in turns
]
PSALM = (1, 21504, 8, 32, 4, [(32, 32), (64, 64), (128, 128)])


@pytest.mark.parametrize(("of", "tolerance"), [(np.float32, 3e-5), (np.float16, FP16)])
@pytest.mark.parametrize("case", [*DEFORM, pytest.param(PSALM, id="large, of PSALM")])
def test_deform_attn(device: Any, rng: np.random.Generator, case: Any, of: Any, tolerance: float) -> None:
    """fp32: a coordinate of 128 holds 8e-6 of a pixel."""
    batch, queries, heads, width, points, shapes = case
    value = rng.normal(0, 1, (batch, sum(h * w for h, w in shapes), heads, width)).astype(of)
    locations = rng.uniform(-0.3, 1.3, (batch, queries, heads, len(shapes), points, 2)).astype(np.float32)
    flat = locations.reshape(-1)
    odd = np.float32([0, 1, 0.5, -1e30, np.inf, np.nan, -1e-9, 1 / 8])
    where = rng.integers(0, len(flat), max(1, len(flat) // 30))
    flat[where] = rng.choice(odd, len(where))
    weights = rng.random(locations.shape[:5])
    weights = (weights / weights.sum((3, 4), keepdims=True)).astype(of)
    got = deform.deform_attn(device, value, shapes, locations, weights)
    wanted = deform_attn(value, shapes, locations, weights, of=np.float64)
    assert got.dtype == of
    if case is PSALM:
        tolerance = max(tolerance, 1e-4)  # fp32: neighbours among 5 million values differ by up to 10
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=tolerance)
