"""Both small bundles through the TensorRT backend give ONNX Runtime's answers.

`double`: over the test doubles of PyCUDA and TensorRT (tests/doubles), where ONNX Runtime executes the graphs, so the
answers must be equal to the last bit. `gpu`: engines built here in fp16, on real hardware (make gpu-check).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt import backends
from pixelrt.segmenter import Segmenter

from tests.doubles.bundle import Sizes, installed, with_engines

# Of an encoder's outputs in fp16 against fp32's, |difference| / |wanted|; as in docs/precision.md, which says why.
FP16 = 0.01
IOU_MIN = 0.98  # of masks, as the export's gate

Ask = Callable[[Segmenter], list[Any]]


def pixellm_answers(seg: Segmenter, samples: list[tuple[Path, str]]) -> list[Any]:
    """Three pictures with a question each, a second question about the last, and an answer as it comes."""
    answers = [seg.segment(seg.encode(image), question) for image, question in samples[:3]]
    frame = seg.encode(samples[2][0])
    answers += [seg.segment(frame, samples[0][1]), seg.segment(frame, samples[2][1])]
    *_, streamed = seg.stream(seg.encode(samples[0][0]), samples[0][1])
    return [*answers, streamed]


def psalm_answers(seg: Any, samples: list[tuple[Path, str]], names: list[str]) -> list[Any]:
    """Every task, about one frame; then the next picture, and the first one again."""
    frame = seg.encode(samples[0][0])
    regions = pixelrt.Regions(points=[(72, 190)], boxes=[(181, 46, 270, 138)])
    queries = [
        pixelrt.Classes(names[:12]),
        pixelrt.Classes(names[:5], task="instance"),
        pixelrt.Classes(names[:7], task="semantic"),
        pixelrt.Refer("the blue star"),
        regions,
    ]
    answers = [seg.segment(frame, query) for query in queries]
    other = seg.encode(samples[1][0])
    answers.append(seg.segment(other, pixelrt.Refer("the red circle")))
    answers.append(seg.segment(frame, pixelrt.Refer("the blue star")))
    return [*answers, *seg.track([frame, other], regions)]


@pytest.fixture(params=["pixellm-tiny", "psalm-tiny"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(name: str, samples: list[tuple[Path, str]], class_names: list[str]) -> Ask:
    if name == "psalm-tiny":
        return lambda seg: psalm_answers(seg, samples, class_names)
    return lambda seg: pixellm_answers(seg, samples)


@pytest.fixture
def bundle(name: str, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("psalm_bundle" if name == "psalm-tiny" else "tiny_bundle")
    return found


@pytest.fixture
def no_gpu_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels by emulation would take minutes; tests/runtime/test_cuda.py has them."""
    monkeypatch.setattr("pixelrt.cuda_masks._built", lambda: False)


@pytest.mark.parametrize("language", ["language", "language_compat"])
def test_through_the_double(language: str, bundle: Path, ask: Ask, tmp_path: Path, no_gpu_code: None) -> None:
    """Small profiles, so that PSALM's picture and prompt are read in several pieces."""
    wanted = ask(pixelrt.load(bundle, backend="onnxruntime"))
    folder = with_engines(bundle, tmp_path / "b", Sizes(cache=640, prefill=128), language)
    with installed():
        seg = pixelrt.load(folder, backend="tensorrt")
        got = ask(seg)
    assert seg.backend.startswith("TensorRT 10.16.1 on a test double")
    assert any(answer.masks for answer in wanted)
    for answer, other in zip(got, wanted, strict=True):
        same_answer(answer, other)


def test_a_profile_that_begins_with_an_empty_cache(
    psalm_bundle: Path, samples: list[tuple[Path, str]], tmp_path: Path, no_gpu_code: None
) -> None:
    """As `pixelrt build` makes them for TensorRT before 10.15: a second question reads the picture again."""
    sizes = Sizes(cache=256, prefill=256, past=0)
    folder = with_engines(psalm_bundle, tmp_path / "b", sizes, "language_compat")
    queries = [pixelrt.Refer("the blue star"), pixelrt.Refer("the red circle")]
    reference = pixelrt.load(psalm_bundle, backend="onnxruntime")
    frame = reference.encode(samples[0][0])
    wanted = [reference.segment(frame, query) for query in queries]
    with installed():
        seg = pixelrt.load(folder, backend="tensorrt")
        frame = seg.encode(samples[0][0])
        for query, other in zip(queries, wanted, strict=True):
            same_answer(seg.segment(frame, query), other)


def same_answer(answer: Any, other: Any) -> None:
    assert getattr(answer, "token_ids", []) == getattr(other, "token_ids", [])
    assert [mask.label for mask in answer.masks] == [mask.label for mask in other.masks]
    for mask, wanted in zip(answer.masks, other.masks, strict=True):
        # A longer, masked row of attention may be added up in another order.
        assert (mask.mask != wanted.mask).mean() < 1e-4
        assert mask.score == pytest.approx(wanted.score, abs=1e-4)
        np.testing.assert_allclose(mask.low_res_logits, wanted.low_res_logits, atol=2e-3)


def test_fp16_through_the_double(bundle: Path, ask: Ask, tmp_path: Path, no_gpu_code: None) -> None:
    """The types of fp16 engines: what the host gives is cast on its way into pinned memory."""
    folder = with_engines(bundle, tmp_path / "b", activations="float16")
    with installed():
        seg = pixelrt.load(folder, backend="tensorrt")
        frame = seg.encode(Path(__file__).resolve().parents[2] / "calib_data" / "scene_01.png")
        assert frame.tokens.dtype == np.float16
        tokens = np.asarray(frame.tokens, np.float32)
    wanted = np.asarray(pixelrt.load(bundle, backend="onnxruntime").encode(frame.image).tokens)
    assert np.linalg.norm(tokens - wanted) < FP16 * np.linalg.norm(wanted)


@pytest.fixture
def engines(name: str, root: Path, tmp_path: Path) -> Iterator[Path]:
    """An fp16 bundle with engines for the GPU of this machine, which the build has verified."""
    if not backends.gpu_is_there():
        pytest.skip("no GPU to run on")
    for package in ("pycuda", "tensorrt"):
        if importlib.util.find_spec(package) is None and not (
            package == "tensorrt" and importlib.util.find_spec("tensorrt_rtx")
        ):
            pytest.skip(f"{package} is not installed")
    from pixelrt.goldens.make import make_goldens
    from pixelrt_export.export import export_bundle

    checkpoint = root / "checkpoints" / name
    bundle = export_bundle(checkpoint, tmp_path / name, precision="fp16", goldens=make_goldens)
    path = os.pathsep.join(str(root / folder) for folder in ("runtime", "export", "kernels"))
    subprocess.run(
        [sys.executable, "-m", "pixelrt", "build", bundle], env={**os.environ, "PYTHONPATH": path}, check=True
    )
    yield bundle
    shutil.rmtree(bundle)


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_on_a_gpu(engines: Path, ask: Ask) -> None:
    seg = pixelrt.load(engines)
    assert seg.backend.startswith("TensorRT"), seg.backend
    reference = pixelrt.load(engines, backend="onnxruntime")
    picture = Path(__file__).resolve().parents[2] / "calib_data" / "scene_01.png"
    got, wanted = seg.encode(picture), reference.encode(picture)
    for part, other in [
        (got.tokens, wanted.tokens),
        *((got.features[k], v) for k, v in wanted.features.items()),
    ]:
        value, other = np.asarray(part, np.float64), np.asarray(other, np.float64)
        assert np.linalg.norm(value - other) <= FP16 * np.linalg.norm(other)
    pairs = list(zip(ask(seg), ask(reference), strict=True))
    for answer, other in pairs:
        assert getattr(answer, "token_ids", []) == getattr(other, "token_ids", [])
        assert [mask.label for mask in answer.masks] == [mask.label for mask in other.masks]
        for mask, right in zip(answer.masks, other.masks, strict=True):
            union = np.count_nonzero(mask.mask | right.mask)
            assert np.count_nonzero(mask.mask & right.mask) >= IOU_MIN * union
