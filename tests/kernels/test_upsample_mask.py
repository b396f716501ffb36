"""upsample_mask against torch's interpolation chain and against masks of the original code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt_kernels.upsample_mask import reference
from pixelrt_kernels.upsample_mask.reference import upsample_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "pixellm"

# low-res (h, w), square, content (h', w'), original (H, W)
SIZES = [
    ((1, 1), 1, (1, 1), (1, 1)),
    ((1, 1), 7, (7, 3), (33, 1)),
    ((7, 33), 33, (7, 33), (1, 7)),
    ((33, 7), 33, (33, 7), (70, 7)),
    ((33, 33), 33, (33, 33), (33, 33)),  # both steps are the identity
    ((40, 40), 140, (140, 93), (211, 140)),
    ((40, 40), 140, (61, 140), (33, 77)),  # smaller than the content
    ((128, 128), 448, (280, 448), (7, 1000)),
    ((128, 128), 448, (448, 1), (1500, 3)),
    ((128, 128), 448, (252, 448), (720, 1280)),
]


def torch_chain(low_res: np.ndarray, square: int, content: tuple, original: tuple) -> tuple:
    """Logits and scores as the original makes them."""
    torch = pytest.importorskip("torch")

    def resize(x: Any, size: tuple[int, int]) -> Any:
        return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)

    x = resize(torch.from_numpy(low_res)[:, None], (square, square))
    logits = resize(x[..., : content[0], : content[1]], original)[:, 0]
    positive = (logits > 0).float()
    scores = (logits.sigmoid() * positive).flatten(1).sum(1) / (positive.flatten(1).sum(1) + 1e-6)
    return logits.numpy(), scores.numpy()


@pytest.mark.parametrize(("low", "square", "content", "original"), SIZES)
def test_equals_torch(low: tuple, square: int, content: tuple, original: tuple) -> None:
    low_res = np.random.default_rng(7).normal(0, 3, (3, *low)).astype(np.float32)
    logits, wanted_scores = torch_chain(low_res, square, content, original)
    masks, scores, boxes = upsample_mask(low_res, square, content, original)
    assert masks.dtype == np.bool_ and scores.dtype == np.float32 and boxes.dtype == np.int32
    assert np.array_equal(masks, logits > 0)
    np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=1e-6)


STEPS = [(128, 448), (448, 60), (280, 1080), (33, 100), (7, 33), (64, 64), (7, 1)]


@pytest.mark.parametrize(("n_in", "n_out"), STEPS)
def test_one_step_within_one_rounding_of_torch(n_in: int, n_out: int) -> None:
    torch = pytest.importorskip("torch")
    plane = np.random.default_rng(n_in).normal(0, 3, (n_in, n_in)).astype(np.float32)
    step = reference.taps(n_in, n_out)
    got = reference.mix(reference.mix(plane, step, axis=1), step, axis=0)
    source = torch.from_numpy(plane)[None, None]
    wanted = torch.nn.functional.interpolate(source, (n_out, n_out), mode="bilinear")[0, 0].numpy()
    # Torch orders the sum differently for narrow planes: two units in the last place of a value near 8.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["two_targets", "one_target_eos", "zero"])
def test_equals_the_original(case: str) -> None:
    tensors = pytest.importorskip("safetensors.numpy").load_file(GOLDEN / f"case_{case}.safetensors")
    sizes = json.loads((GOLDEN / "golden.json").read_text())["cases"][case]
    masks, scores, boxes = upsample_mask(
        tensors["low_res_masks"][:, 0], 448, tuple(sizes["clip_resize"]), tuple(sizes["original"])
    )
    assert np.array_equal(masks, tensors["pred_masks"] > 0)
    np.testing.assert_allclose(scores, tensors["mask_scores"], rtol=0, atol=1e-6)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        ys, xs = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    low_res = np.random.default_rng(3).normal(0, 3, (2, 33, 33)).astype(np.float32)
    whole = upsample_mask(low_res, 70, (41, 70), (150, 211))
    monkeypatch.setattr(reference, "BAND_PIXELS", 211 * 7)  # 150 rows in bands of 7, the last one of 3
    banded = upsample_mask(low_res, 70, (41, 70), (150, 211))
    assert np.array_equal(whole[0], banded[0]) and np.array_equal(whole[2], banded[2])
    np.testing.assert_allclose(whole[1], banded[1], rtol=0, atol=1e-7)


def test_empty_and_full() -> None:
    low_res = np.stack([np.full((7, 7), -2.0, np.float32), np.full((7, 7), 2.0, np.float32)])
    masks, scores, boxes = upsample_mask(low_res, 14, (9, 14), (33, 51))
    assert not masks[0].any() and masks[1].all()
    assert scores[0] == 0 and scores[1] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert boxes.tolist() == [[0, 0, 0, 0], [0, 0, 51, 33]]
    assert [len(x) for x in upsample_mask(low_res[:0], 14, (9, 14), (33, 51))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "square", "content", "original"),
    [((7, 7), 14, (9, 14), (3, 3)), ((1, 7, 7), 14, (15, 14), (3, 3)), ((1, 7, 7), 14, (0, 14), (3, 3)),
     ((1, 7, 7), 14, (9, 14), (0, 3)), ((1, 0, 7), 14, (9, 14), (3, 3))],
)  # fmt: skip
def test_refuses_sizes_that_make_no_sense(shape: tuple, square: int, content: tuple, original: tuple) -> None:
    with pytest.raises(ValueError, match=r"need 1 <= content|must be"):
        upsample_mask(np.zeros(shape, np.float32), square, content, original)
