"""Questions asked together through the TensorRT backend, over its test doubles: profiles, fixed caches, GPU arrays.

Engines that go on behind any cache read prompts together, in pieces that their profiles take; others read them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest

from tests.doubles.bundle import Sizes, installed, with_engines


@pytest.fixture(autouse=True)
def no_gpu_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels by emulation would take minutes; tests/runtime/test_cuda.py has them."""
    monkeypatch.setattr("pixelrt.cuda_masks._built", lambda: False)


def check(answers: list[Any], alone: list[Any]) -> None:
    for answer, other in zip(answers, alone, strict=True):
        assert getattr(answer, "token_ids", []) == getattr(other, "token_ids", [])
        for mask, wanted in zip(answer.masks, other.masks, strict=True):
            assert (mask.mask != wanted.mask).mean() < 1e-4
            np.testing.assert_allclose(mask.low_res_logits, wanted.low_res_logits, atol=2e-3)
    assert any(answer.masks for answer in answers)


@pytest.mark.parametrize(("language", "together"), [("language", True), ("language_compat", False)])
def test_pixellm(
    language: str, together: bool, tiny_bundle: Path, samples: list[tuple[Path, str]], tmp_path: Path
) -> None:
    """Two pictures in a run of the encoder; a cache for a picture and three answers of thirty tokens."""
    asked = [*samples[:3], (samples[0][0], samples[1][1])]
    images, prompts = [image for image, _ in asked], [prompt for _, prompt in asked]
    reference: Any = pixelrt.load(tiny_bundle, backend="onnxruntime")
    alone = [reference.segment(image, prompt, 30) for image, prompt in asked]
    frame = reference.encode(images[0])
    about_one = [reference.segment(frame, prompt, 30) for prompt in prompts]
    sizes = Sizes(cache=448, prefill=128, batch=2)
    folder = with_engines(tiny_bundle, tmp_path / "b", sizes, language)
    with installed():
        seg: Any = pixelrt.load(folder, backend="tensorrt")
        check(seg.segment_batch(images, prompts, 30), alone)
        frame = seg.encode(images[0])
        answers = seg.segment_batch(frame, prompts, 30)
        check(answers, about_one)
        if together:  # those of one pass have equal shares of its time
            shares = {answer.timing["language"] for answer in answers}
            assert len(shares) < len(answers)


def test_psalm(
    psalm_bundle: Path, samples: list[tuple[Path, str]], class_names: list[str], tmp_path: Path
) -> None:
    queries: list[Any] = ["the blue star", pixelrt.Classes(class_names[:5]), "the red circle"]
    queries += [pixelrt.Regions(points=[(72, 190)]), pixelrt.Classes(class_names[:9], "semantic")]
    reference: Any = pixelrt.load(psalm_bundle, backend="onnxruntime")
    frame = reference.encode(samples[0][0])
    alone = [reference.segment(frame, query) for query in queries]
    folder = with_engines(psalm_bundle, tmp_path / "b", Sizes(cache=640, prefill=384))
    with installed():
        seg: Any = pixelrt.load(folder, backend="tensorrt")
        check(seg.segment_batch(samples[0][0], queries), alone)
