"""The host library's masks, scores, boxes and label maps against the numpy specification, pixel by pixel.

Every instruction set of this machine is run. The library fuses multiply and add with one rounding, the specification
by way of float64 with two: they differ about once in 2^29 values, and a mask only where the value is a rounding of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.library import HostLibrary
from pixelrt_kernels.upsample_mask import chain, classes, host, labels, reference
from pixelrt_kernels.upsample_mask.probability import probability

Sizes = tuple[int, tuple[int, int], tuple[int, int]]
SCORE = 1e-6  # sums of float32 probabilities, in another order


def draw(rng: np.random.Generator, most: int) -> tuple[np.ndarray, Sizes]:
    """Three masks (one noise, one mostly outside, one a blob) and sizes: odd, tall, one pixel, up or down."""
    h, w = (int(n) for n in rng.integers(1, 70, 2))
    square = int(rng.choice([1, 7, 33, 64, 100, 224]))
    content = tuple(int(rng.choice([1, square, rng.integers(1, square + 1)])) for _ in "hw")
    original = tuple(int(rng.choice([1, 7, 33, rng.integers(1, most)])) for _ in "hw")
    y, x = np.mgrid[:h, :w]
    blob = rng.uniform(0, 20) - np.hypot(y - rng.uniform(0, h), x - rng.uniform(0, w))
    planes = np.stack([rng.normal(0, 3, (h, w)), rng.normal(-8, 3, (h, w)), blob]).astype(np.float32)
    return planes, (square, content, original)


def assert_equal(library: HostLibrary, planes: np.ndarray, sizes: Sizes, threads: int = 2) -> None:
    masks, scores, boxes = reference.upsample_mask(planes, *sizes)
    for level in library.levels:
        got = host.upsample_mask(library, planes, *sizes, level=level, threads=threads)
        assert got[0].dtype == np.bool_ and np.array_equal(got[0], masks), (level, planes.shape, sizes)
        np.testing.assert_allclose(got[1], scores, rtol=0, atol=SCORE)
        assert np.array_equal(got[2], boxes), (level, planes.shape, sizes)
        bits, again, same = host.upsample_bits(library, planes, *sizes, level=level, threads=1)
        assert np.array_equal(bits, np.packbits(masks, axis=2))
        assert np.array_equal(again, got[1]) and np.array_equal(same, boxes)  # whatever the number of threads


@pytest.mark.parametrize("seed", range(200))
def test_random_shapes(host_library: HostLibrary, seed: int) -> None:
    planes, sizes = draw(np.random.default_rng(seed), 230)
    assert_equal(host_library, planes, sizes)


def test_8k(host_library: HostLibrary) -> None:
    planes = np.random.default_rng(0).normal(-1, 3, (1, 64, 64)).astype(np.float32)
    sizes = (256, (144, 256), (4320, 7680))
    masks, scores, boxes = reference.upsample_mask(planes, *sizes)
    bits, got, box = host.upsample_bits(host_library, planes, *sizes)
    assert np.array_equal(bits, np.packbits(masks, axis=2)) and np.array_equal(box, boxes)
    np.testing.assert_allclose(got, scores, rtol=0, atol=SCORE)


def test_no_masks(host_library: HostLibrary) -> None:
    got = host.upsample_mask(host_library, np.zeros((0, 8, 8), np.float32), 32, (32, 20), (5, 6))
    assert [x.shape for x in got] == [(0, 5, 6), (0,), (0, 4)]
    owners = host.label_map(
        host_library, np.zeros((0, 8, 8), np.float32), np.zeros(0, np.float32), 32, (32, 20), (5, 6)
    )
    assert np.all(owners.owner == -1) and owners.owner.shape == (5, 6)


def test_planes_that_are_not_contiguous(host_library: HostLibrary) -> None:
    planes = np.random.default_rng(1).normal(0, 3, (40, 33, 6)).astype(np.float32).T[::2, ::-1]
    assert not planes.flags.c_contiguous
    assert_equal(host_library, planes, (70, (41, 70), (50, 111)))


def test_all_in_the_padding(host_library: HostLibrary) -> None:
    """What lies right of and below the content is cropped: nothing is left, though the logits are positive there."""
    planes = np.full((2, 32, 32), -3, np.float32)
    planes[0, :, 20:] = planes[1, 20:] = 5
    sizes = (128, (64, 64), (100, 90))
    masks, scores, boxes = host.upsample_mask(host_library, planes, *sizes)
    assert not masks.any() and not scores.any() and not boxes.any()
    assert_equal(host_library, planes, sizes)


def test_single_pixels(host_library: HostLibrary) -> None:
    """One pixel so far above the others that any share of it shows: no column may be taken for empty that has some."""
    planes = np.where(np.eye(42).reshape(42, 6, 7), 1e6, -1).astype(np.float32)
    for sizes in ((25, (25, 25), (197, 201)), (6, (6, 6), (65, 130))):
        assert_equal(host_library, planes, sizes)


def test_ties_and_what_is_no_number(host_library: HostLibrary) -> None:
    """Zero is outside; infinities and nan do as in the specification."""
    planes = np.zeros((5, 4, 4), np.float32)
    planes[1, 1, 1], planes[2, 1, 1], planes[3, 1, 1], planes[4] = np.inf, -np.inf, np.nan, -0.0
    with np.errstate(invalid="ignore"):
        assert_equal(host_library, planes, (16, (16, 16), (40, 40)))
    assert not host.upsample_mask(host_library, planes[:1], 16, (16, 16), (40, 40))[0].any()


@pytest.mark.parametrize("seed", range(60))
def test_label_map(host_library: HostLibrary, seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    planes, sizes = draw(rng, 90)
    planes = np.concatenate([planes, planes[:2], 40 * planes[:1]])  # equal ones, and ones whose p is 0 or 1
    scores = rng.choice([0.81, 0.9, 0.95], len(planes)).astype(np.float32)
    wanted = labels.label_map(planes, scores, *sizes)
    for level in host_library.levels:
        got = host.label_map(host_library, planes, scores, *sizes, level=level)
        for name in wanted._fields:
            assert np.array_equal(getattr(got, name), getattr(wanted, name)), (level, name, sizes)


def test_label_map_to_the_last_bit(host_library: HostLibrary) -> None:
    """Masks that differ by one rounding here and there: who owns a pixel hangs on the last bit of every step."""
    rng = np.random.default_rng(5)
    one = rng.normal(0, 1, (40, 40)).astype(np.float32)
    several = [np.nextafter(one, rng.choice([-9, 9], one.shape).astype(np.float32)) for _ in range(5)]
    faint = np.float32([0, -1e-9, -1e-7, -2e-7, -3e-7])[:, None, None] * np.ones_like(one)
    for planes in (np.stack(several), np.stack([one, *faint]), faint):
        scores = np.full(len(planes), 0.9, np.float32)
        sizes = (160, (121, 160), (150, 199))
        wanted = labels.label_map(planes, scores, *sizes)
        assert planes is faint or len(set(wanted.won)) > 1  # there is something to tell apart
        for level in host_library.levels:
            got = host.label_map(host_library, planes, scores, *sizes, level=level)
            for name in wanted._fields:
                assert np.array_equal(getattr(got, name), getattr(wanted, name)), (level, name)


@pytest.mark.parametrize("seed", range(40))
def test_class_map(host_library: HostLibrary, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "BAND_VALUES", 20_000)  # several bands
    rng = np.random.default_rng(2000 + seed)
    planes, sizes = draw(rng, 90)
    weights = rng.dirichlet(np.full(7, 0.3), 3).astype(np.float32)
    wanted = classes.class_map(planes, weights, *sizes)
    steps = host.HostSteps(host_library, (planes.shape[1], planes.shape[2]), *sizes)
    got = classes.class_map(planes, weights, *sizes, steps)
    for name in wanted._fields:
        assert np.array_equal(getattr(got, name), getattr(wanted, name)), (name, sizes)


@pytest.mark.parametrize("seed", range(20))
def test_resize_rows(host_library: HostLibrary, seed: int) -> None:
    """Any rows of both steps, from all rows of the source or from those that they need, on each instruction set."""
    planes, (square, content, original) = draw(np.random.default_rng(3000 + seed), 90)
    whole = chain.Chain.of(planes, square, content, original)
    top, bottom = sorted(np.random.default_rng(seed).integers(0, original[0] + 1, 2))
    part = slice(int(top), max(int(bottom), int(top) + 1)) if top < original[0] else slice(0, 1)
    source = whole.source_rows(part)
    wanted = [whole.content_rows(plane, source) for plane in planes]
    rows, columns = (planes.shape[1], square), (planes.shape[2], square, content[1])
    larger, wide = (content[0], original[0]), (content[1], original[1], original[1])
    for level in host_library.levels:
        got = host.resize_rows(host_library, planes, rows, columns, source, level=level)
        assert np.array_equal(got, wanted)
        p = host.resize_rows(host_library, planes, rows, columns, source, probabilities=True, level=level)
        assert np.array_equal(p, probability(got))
        enlarged = host.resize_rows(host_library, got, larger, wide, part, source.start, level=level)
        assert np.array_equal(enlarged, [whole.enlarged(c, source.start, part) for c in wanted])


@pytest.mark.parametrize(
    "call",
    [
        lambda library, x: host.upsample_mask(library, x[0], 32, (32, 32), (9, 9)),
        lambda library, x: host.upsample_bits(library, x, 32, (33, 32), (9, 9)),
        lambda library, x: host.label_map(library, x, np.ones(2, np.float32), 32, (32, 32), (9, 9)),
    ],
)
def test_refuses_what_makes_no_sense(host_library: HostLibrary, call: Any) -> None:
    with pytest.raises(ValueError, match=r"need|must be"):
        call(host_library, np.zeros((3, 8, 8), np.float32))
