"""deform_attn: the specification against the original's output and torch's grid_sample; the library against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.deform_attn import host, reference
from pixelrt_kernels.library import HostLibrary

# images, queries, heads, width of a head, points, sizes of the levels
CASES: list[tuple[int, int, int, int, int, list[tuple[int, int]]]] = [
    (1, 1, 1, 1, 1, [(1, 1)]),
    (2, 33, 4, 16, 4, [(4, 5), (8, 10), (16, 20)]),
    (1, 7, 3, 33, 2, [(7, 1), (1, 9)]),
    (1, 65, 8, 32, 4, [(4, 4), (8, 8), (16, 16)]),
    (2, 5, 2, 8, 17, [(3, 33)]),
    (1, 0, 2, 8, 1, [(3, 3)]),
]
FP32 = 2e-6  # sums of up to 48 products of values near 1, in another order
FP16 = 1e-3  # one rounding of a sum below 2 to float16


def draw(case: tuple, of: Any) -> tuple:
    """A third of the samples lies outside, some far, some exactly on an edge or on a pixel, some are no numbers."""
    batch, queries, heads, width, points, shapes = case
    rng = np.random.default_rng(queries)
    value = rng.normal(0, 1, (batch, sum(h * w for h, w in shapes), heads, width)).astype(of)
    locations = rng.uniform(-0.3, 1.3, (batch, queries, heads, len(shapes), points, 2)).astype(np.float32)
    flat = locations.reshape(-1)
    odd = [0, 1, 0.5, -1e30, 1e30, np.inf, np.nan, -1e-9, 1 / 8, 7 / 8]
    flat[:: max(1, len(flat) // 40)] = np.resize(np.float32(odd), len(flat[:: max(1, len(flat) // 40)]))
    weights = rng.random(locations.shape[:5])
    weights /= np.maximum(weights.sum((3, 4), keepdims=True), 1e-9)
    return value, shapes, locations, weights.astype(of)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_close_to_float64(case: tuple) -> None:
    inputs = draw(case, np.float32)
    exact = reference.deform_attn(*inputs, of=np.float64)
    got = reference.deform_attn(*inputs)
    assert got.dtype == np.float32 and exact.dtype == np.float64
    assert got.shape == (case[0], case[1], case[2] * case[3])
    # A coordinate of 30 holds 2e-6 of a pixel in float32, and neighbouring values differ by up to 6.
    np.testing.assert_allclose(got, exact, rtol=0, atol=3e-5)


def test_equals_the_original(golden_psalm: Path) -> None:
    case = np.load(golden_psalm / "op_msdeform.npz")
    shapes = [(int(h), int(w)) for h, w in case["spatial_shapes"]]
    got = reference.deform_attn(case["value"], shapes, case["sampling_locations"], case["attention_weights"])
    np.testing.assert_allclose(got, case["output"], rtol=0, atol=5e-6)  # as above, on maps of 20


def test_equals_grid_sample() -> None:
    torch = pytest.importorskip("torch")
    from pixelrt_export.reference.deform_attn import deform_attn

    value, shapes, locations, weights = draw(CASES[3], np.float32)
    locations = np.where(
        np.abs(locations) < 2, locations, np.float32(0.25)
    )  # grid_sample clips nan to an edge
    got = reference.deform_attn(value, shapes, locations, weights)
    wanted = deform_attn(torch.from_numpy(value), shapes, *map(torch.from_numpy, (locations, weights)))
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("of", "tolerance"), [(np.float32, FP32), (np.float16, FP16)])
@pytest.mark.parametrize("case", CASES)
def test_library(host_library: HostLibrary, case: tuple, of: Any, tolerance: float) -> None:
    inputs = draw(case, of)
    wanted = reference.deform_attn(*inputs)
    for level in host_library.levels:
        got = host.deform_attn(host_library, *inputs, level=level)
        assert got.dtype == wanted.dtype == of and got.shape == wanted.shape
        np.testing.assert_allclose(got.astype(np.float32), wanted.astype(np.float32), rtol=0, atol=tolerance)


def test_every_half_number(host_library: HostLibrary) -> None:
    """One sample in the middle of one pixel, weight 1: out is value, for all float16 numbers."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    value = numbers.reshape(1, 1, 1, -1)
    locations, weights = np.full((1, 1, 1, 1, 1, 2), 0.5, np.float32), np.ones((1, 1, 1, 1, 1), np.float16)
    for level in host_library.levels:
        got = host.deform_attn(host_library, value, [(1, 1)], locations, weights, level=level)
        assert np.array_equal(got.ravel(), numbers)


def test_rounding_to_half(host_library: HostLibrary) -> None:
    """Random products, rounded to float16 as numpy rounds them; subnormals and overflow included."""
    rng = np.random.default_rng(3)
    value = (rng.normal(0, 1, 20000) * 10.0 ** rng.uniform(-8, 5, 20000)).clip(-6e4, 6e4).astype(np.float16)
    weight = np.float16(1.37)
    got = host.deform_attn(
        host_library,
        value.reshape(1, 1, 1, -1),
        [(1, 1)],
        np.full((1, 1, 1, 1, 1, 2), 0.5, np.float32),
        np.full((1, 1, 1, 1, 1), weight),
    )
    with np.errstate(over="ignore"):
        wanted = (value.astype(np.float32) * np.float32(weight)).astype(np.float16)
    assert np.array_equal(got.ravel(), wanted)


@pytest.mark.parametrize(
    ("value", "shapes", "locations", "weights"),
    [((1, 5, 1, 2), [(2, 2)], (1, 3, 1, 1, 4, 2), (1, 3, 1, 1, 4)),
     ((1, 4, 1, 2), [(2, 2)], (1, 3, 1, 1, 4, 2), (1, 3, 1, 1, 3)),
     ((1, 4, 1, 2), [(2, 2)], (1, 3, 2, 1, 4, 2), (1, 3, 2, 1, 4)),
     ((1, 0, 1, 2), [(0, 2)], (1, 3, 1, 1, 4, 2), (1, 3, 1, 1, 4))],
)  # fmt: skip
def test_refuses_shapes_that_do_not_fit(value: tuple, shapes: list, locations: tuple, weights: tuple) -> None:
    with pytest.raises(ValueError, match="need"):
        reference.deform_attn(np.ones(value), shapes, np.ones(locations), np.ones(weights))
