"""pixelrt.cuda over the double of PyCUDA's driver (tests/doubles). What it does on a GPU is shown by make gpu-check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pixelrt import upsample
from pixelrt.errors import InputError
from pixelrt_kernels.upsample_mask import labels, reference

from benchmarks import gpu_check
from tests.doubles.bundle import Doubles, installed

SIZES = 40, (31, 40), (53, 70)  # square, content, original


@pytest.fixture
def doubles(emulation: Path) -> Iterator[Doubles]:
    import ctypes

    with installed(ctypes.CDLL(str(emulation)).emulate) as found:
        yield found


@pytest.fixture
def gpu(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import pixelrt.cuda as cuda
    from pixelrt import cuda_masks

    cuda_masks._built.cache_clear()
    for module in (cuda, cuda_masks):
        monkeypatch.setattr(module, "find", lambda kind: Path("device.fatbin"))
    with cuda.CudaDevice() as device:
        yield device
    cuda_masks._built.cache_clear()


def resident(gpu: Any, array: np.ndarray) -> Any:
    held = gpu.empty(array.shape, array.dtype)
    stream = gpu.stream("test")
    gpu.upload(held.address, array, stream)
    stream.mark([held.block])
    return held


def logits(count: int) -> np.ndarray:
    y, x = np.mgrid[:12, :15]
    rng = np.random.default_rng(3)
    blobs = [
        rng.uniform(2, 6) - np.hypot(y - rng.uniform(0, 12), x - rng.uniform(0, 15)) for _ in range(count)
    ]
    return np.stack(blobs).astype(np.float32)


def test_masks_are_enlarged_where_their_logits_lie(gpu: Any, doubles: Doubles) -> None:
    low_res = logits(3)
    masks, scores, boxes = upsample.upsample_mask(resident(gpu, low_res), *SIZES)
    wanted = reference.upsample_mask(low_res, *SIZES)
    assert np.array_equal(masks, wanted[0]) and masks.dtype == np.bool_
    np.testing.assert_allclose(scores, wanted[1], rtol=0, atol=1e-6)
    assert np.array_equal(boxes, wanted[2])
    done = [what for _, what in doubles.machine.done]
    assert "pixelrt_upsample_mask" in done and done.count("copy to GPU") == 1


def test_some_of_the_masks(gpu: Any) -> None:
    """A slice, as queries are enlarged one by one, and a choice, as a panoptic answer makes."""
    low_res = logits(4)
    held = resident(gpu, low_res)
    bits, _, _ = upsample.upsample_bits(held[2:3], *SIZES)
    assert np.array_equal(bits, np.packbits(reference.upsample_mask(low_res[2:3], *SIZES)[0], axis=2))
    scores, chosen = np.float32([0.9, 0.8]), np.array([3, 1])
    got = upsample.label_map(held[chosen], scores, *SIZES)
    wanted = labels.label_map(low_res[chosen], scores, *SIZES)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_class_maps_are_made_on_the_host(gpu: Any) -> None:
    low_res, weights = logits(3), np.float32([[1, 0], [0, 1], [0.5, 0.5]])
    got = upsample.class_map(resident(gpu, low_res), weights, *SIZES)
    assert np.array_equal(got.best, upsample.class_map(low_res, weights, *SIZES).best)


def test_without_kernels_masks_are_made_on_the_host(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrt import cuda_masks

    monkeypatch.setattr(cuda_masks, "find", lambda kind: None)
    low_res = logits(1)
    with pytest.warns(
        UserWarning, match="GPU code of the kernels is not built: masks are enlarged on the host"
    ):
        masks, _, _ = upsample.upsample_mask(resident(gpu, low_res), *SIZES)
    assert np.array_equal(masks, reference.upsample_mask(low_res, *SIZES)[0])


def test_kernels_that_are_not_built(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixelrt.cuda as cuda

    monkeypatch.setattr(cuda, "find", lambda kind: None)
    with pytest.raises(InputError, match="The GPU code of the kernels is not built"):
        gpu.kernels()


def test_no_such_gpu(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixelrt.cuda as cuda

    with pytest.raises(InputError, match="No GPU 1: this machine has 1"):
        cuda.CudaDevice(1)

    def refuse() -> None:
        raise cuda.driver.Error("cuInit failed: unknown error")

    monkeypatch.setattr(cuda.driver, "init", refuse)
    with pytest.raises(
        InputError, match=r"driver opens no GPU \(cuInit failed: unknown error\). Run: nvidia-smi"
    ):
        cuda.CudaDevice()


def test_a_gpu_that_is_not_used_is_a_failure() -> None:
    """Of gpu-check; without a GPU skipped tests are none."""
    good = {"tests": 4, "failures": 0, "errors": 0, "skipped": 0}
    gpu, why = [{"name": "H200"}], {"no GPU to run on: driver too old": 3}
    assert gpu_check.problems(False, [], {**good, "skipped": 3}, why, {"not_run": "no GPU"}) == []
    assert gpu_check.problems(True, gpu, good, {}, {}) == []
    assert gpu_check.problems(True, gpu, good, {"tensorrt is not installed": 2}, {}) == []
    assert gpu_check.problems(True, gpu, {**good, "failures": 1}, {}, {}) == ["1 of 4 tests failed."]
    assert "nvidia-smi lists none" in gpu_check.problems(True, [], good, {}, {})[0]
    assert "driver too old" in gpu_check.problems(True, gpu, good, why, {})[0]
    assert "not timed: cupy" in gpu_check.problems(True, gpu, good, {}, {"not_run": "cupy"})[0]


def test_signs_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pixelrt import backends

    monkeypatch.setattr(backends, "shutil", SimpleNamespace(which=lambda name: None))
    monkeypatch.setattr(backends, "DEVICE_FILES", (str(tmp_path / "nvidia0"),))
    assert not backends.gpu_is_there()
    (tmp_path / "nvidia0").touch()
    assert backends.gpu_is_there()
