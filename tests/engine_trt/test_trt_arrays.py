"""Arrays on the GPU and the memory below them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.doubles.bundle import Doubles


def test_arrays_are_cut_as_numpy_cuts(doubles: Doubles) -> None:
    from pixelrt.cuda import CudaDevice

    with CudaDevice() as device:
        host = np.random.default_rng(7).normal(size=(4, 3, 5, 2)).astype(np.float32)
        stream = device.stream("test")
        array = device.empty(host.shape, host.dtype)
        device.upload(array.address, host, stream)
        stream.mark([array.block])
        for index in (
            1, -1, slice(1, 3), slice(4, 4), [2, 0, 2], np.array([3]),
            (slice(None), slice(0, 2)), (slice(None), slice(None), slice(0, 3)), (slice(1, 2), slice(None)),
        ):  # fmt: skip
            got = array[index]
            assert np.array_equal(np.asarray(got), host[index]), index
            assert got.shape == host[index].shape
        assert np.asarray(array, np.float64).dtype == np.float64
        for index in ((slice(0, 2), slice(0, 1)), slice(0, 4, 2), (0, 0)):
            with pytest.raises(TypeError, match="cannot be indexed"):
                array[index]
        with pytest.raises(IndexError):
            array[4]
        about = array.__cuda_array_interface__
        assert about["data"] == (array.address, False) and about["shape"] == host.shape
        assert about["typestr"] == "<f4" and about["version"] == 3


def test_large_arrays_come_in_pieces(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixelrt.cuda as cuda

    monkeypatch.setattr(cuda, "STAGING_BYTES", 64)
    with cuda.CudaDevice() as device:
        zeros = device.zeros((37,), np.float32, device.stream("test"))
        assert np.array_equal(np.asarray(zeros), np.zeros(37, np.float32))


def test_memory_is_used_again_at_the_same_addresses(doubles: Doubles) -> None:
    from pixelrt.cuda import CudaDevice

    with CudaDevice() as device:
        first = [device.empty((100,), np.float32) for _ in range(3)]
        addresses = [array.address for array in first]
        part = first[1][10:20]
        del first
        again = [device.empty((100,), np.float32).address for _ in range(2)]
        assert again == [addresses[0]] * 2
        del part
        assert [a.address for a in [device.empty((100,), np.float32) for _ in range(3)]] == addresses


def test_full_memory_is_emptied_of_what_nobody_uses(
    doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pixelrt.cuda as cuda

    allocate, room = cuda.driver.mem_alloc, [2]

    def scarce(size: int) -> Any:
        if not room[0]:
            raise cuda.driver.MemoryError("out of memory")
        room[0] -= 1
        return allocate(size)

    monkeypatch.setattr(cuda.driver, "mem_alloc", scarce)
    device = cuda.CudaDevice()
    with device:
        device.empty((10,), np.float32)
        device.pool.trim()
        device.empty((20,), np.float32)
        with pytest.raises(cuda.driver.MemoryError):
            device.empty((30,), np.float32)
