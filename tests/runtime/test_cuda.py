"""pixelrt.cuda with a driver that is made up: no PyCUDA is needed. What it does on a GPU is shown by make gpu-check."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt_kernels.fuse_scales.launch import fuse_scales


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, over a driver that notes what it is asked for and copies bytes."""
    driver: Any = ModuleType("pycuda.driver")
    driver.asked = []
    device = SimpleNamespace(
        name=lambda: "made up",
        compute_capability=lambda: (9, 0),
        retain_primary_context=lambda: SimpleNamespace(
            push=lambda: driver.asked.append("push"), pop=lambda: driver.asked.append("pop")
        ),
    )
    driver.init = lambda: None
    driver.Device = type(
        "Device", (), {"__new__": lambda cls, index: device, "count": staticmethod(lambda: 1)}
    )

    def get_function(name: str) -> Any:
        def launch(*arguments: Any, **how: Any) -> None:
            driver.asked.append((name, arguments, how))

        return launch

    driver.module_from_file = lambda path: SimpleNamespace(get_function=get_function)
    driver.mem_alloc = lambda size: np.zeros(size, np.uint8)

    def to_device(buffer: np.ndarray, array: np.ndarray) -> None:
        buffer[:] = array.reshape(-1).view(np.uint8)

    def to_host(array: np.ndarray, buffer: np.ndarray) -> None:
        array.reshape(-1).view(np.uint8)[:] = buffer[: array.nbytes]

    driver.memcpy_htod, driver.memcpy_dtoh = to_device, to_host
    package: Any = ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.delitem(sys.modules, "pixelrt.cuda", raising=False)
    module: Any = importlib.import_module("pixelrt.cuda")
    monkeypatch.setattr(module, "find", lambda kind: tmp_path / "device.fatbin")
    yield module
    sys.modules.pop("pixelrt.cuda", None)


def test_a_kernel_is_launched_inside_of_the_context(cuda: Any) -> None:
    with cuda.CudaDevice() as device:
        assert device.name == "made up" and device.capability == (9, 0)
        inputs = np.ones((2, 3), np.float32), np.ones((3, 8), np.float16), np.ones(8, np.float16)
        out = fuse_scales(device, *inputs)
    assert out.shape == (2, 3, 8) and out.dtype == np.float16
    asked = cuda.driver.asked
    assert asked[0] == "push" and asked[-1] == "pop"
    name, arguments, how = asked[1]
    assert name == "pixelrt_fuse_scales_f16x8" and how == {
        "grid": (1, 1, 1),
        "block": (256, 1, 1),
        "shared": 0,
    }
    assert [type(a) for a in arguments[3:6]] == [np.int32] * 3 and [int(a) for a in arguments[3:6]] == [
        2,
        3,
        8,
    ]


def test_copies(cuda: Any) -> None:
    with cuda.CudaDevice() as device:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert np.array_equal(device.download(device.upload(array), (2, 3), np.float32), array)
        assert device.download(device.upload(array[:0]), (0, 3), np.float32).shape == (0, 3)


def test_no_such_gpu(cuda: Any) -> None:
    with pytest.raises(InputError, match="No GPU 1: this machine has 1"):
        cuda.CudaDevice(1)


def test_kernels_that_are_not_built(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find", lambda kind: None)
    with pytest.raises(InputError, match="The GPU code of the kernels is not built"):
        cuda.CudaDevice()
