"""fuse_scales and combine_scales: the specification against torch, the host library against the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.fuse_scales import host, reference
from pixelrt_kernels.library import HostLibrary

# targets, positions, channels
FUSE = [(0, 4, 8), (1, 1, 1), (3, 7, 33), (2, 256, 64), (5, 33, 256)]
# sizes of the scales; the finest last
COMBINE: list[list[tuple[int, int]]] = [
    [(1, 1)], [(7, 33)], [(8, 8), (16, 16)], [(5, 9), (1, 3), (33, 7)], [(16, 16), (8, 8), (3, 5)]
]  # fmt: skip
FP32 = 1e-6  # relative: a product, a sum, and an exponential


def draw(targets: int, positions: int, channels: int, of: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([targets, positions, channels])
    previous = rng.normal(0, 6, (targets, positions)).astype(np.float32)
    return previous, rng.normal(0, 2, (positions, channels)).astype(of), rng.normal(0, 1, channels).astype(of)


def planes(sizes: list[tuple[int, int]], count: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(len(sizes))
    masks = [rng.normal(0, 5, (count, *size)).astype(np.float32) for size in sizes]
    return masks, rng.normal(0.5, 0.2, len(sizes)).astype(np.float32)


@pytest.mark.parametrize("shape", FUSE)
def test_fuse_equals_the_formula(shape: tuple[int, int, int]) -> None:
    previous, features, dense = (x.astype(np.float64) for x in draw(*shape, np.float32))
    wanted = (1 / (1 + np.exp(-previous[:, :, None])) + 1) * features + dense
    got = reference.fuse_scales(*draw(*shape, np.float32))
    assert got.shape == shape and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=FP32, atol=FP32)


@pytest.mark.parametrize("of", [np.float32, np.float16])
@pytest.mark.parametrize("shape", FUSE)
def test_fuse_in_the_library(host_library: HostLibrary, shape: tuple[int, int, int], of: Any) -> None:
    inputs = draw(*shape, of)
    wanted = reference.fuse_scales(*inputs)
    for level in host_library.levels:
        got = host.fuse_scales(host_library, *inputs, level=level)
        assert got.dtype == wanted.dtype == of
        assert np.array_equal(got, wanted)  # every rounding is given


def test_fuse_of_what_is_not_contiguous(host_library: HostLibrary) -> None:
    previous, features, dense = draw(4, 33, 64, np.float32)
    inputs = previous[::2, ::-1], features[::-1, ::2], dense[::2]
    assert np.array_equal(host.fuse_scales(host_library, *inputs), reference.fuse_scales(*inputs))


@pytest.mark.parametrize("sizes", COMBINE)
def test_combine_equals_torch(sizes: list[tuple[int, int]]) -> None:
    torch = pytest.importorskip("torch")
    masks, weights = planes(sizes)
    wanted = sum(
        float(weight)
        * torch.nn.functional.interpolate(torch.from_numpy(m)[:, None], sizes[-1], mode="bilinear")
        for weight, m in zip(weights, masks, strict=True)
    )
    got = reference.combine_scales(masks, weights)
    np.testing.assert_allclose(got, wanted[:, 0].numpy(), rtol=0, atol=1e-5)  # logits of up to 20, float32


@pytest.mark.parametrize("sizes", COMBINE)
def test_combine_in_the_library(host_library: HostLibrary, sizes: list[tuple[int, int]]) -> None:
    masks, weights = planes(sizes)
    wanted = reference.combine_scales(masks, weights)
    for level in host_library.levels:
        got = host.combine_scales(host_library, masks, weights, level=level)
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda: reference.fuse_scales(np.ones((2, 3)), np.ones((4, 5)), np.ones(5)),
        lambda: reference.fuse_scales(np.ones((2, 4)), np.ones((4, 5)), np.ones(4)),
        lambda: reference.combine_scales([], np.ones(0)),
        lambda: reference.combine_scales([np.ones((2, 3, 3)), np.ones((1, 4, 4))], np.ones(2)),
        lambda: reference.combine_scales([np.ones((2, 3, 3))], np.ones(2)),
    ],
)
def test_refuses_what_makes_no_sense(call: Any) -> None:
    with pytest.raises(ValueError, match="need"):
        call()
