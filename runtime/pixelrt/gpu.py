"""The NVIDIA GPU of this machine, asked of the driver's own library, so that nothing needs to be installed for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
MAJOR, MINOR, INTEGRATED = 75, 76, 18  # CUdevice_attribute of cuda.h


@dataclass(frozen=True)
class Gpu:
    name: str
    architecture: str  # sm_87
    memory: int  # bytes
    shared: bool  # memory is the processor's too, as on a Jetson
    cuda: str  # the newest CUDA that the driver runs, 13.0


def find_gpu(index: int = 0, library: str = LIBRARY) -> Gpu | None:
    """None where there is no driver, or no GPU that it may use."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    device, count, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value <= index:
        return None
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        or cuda.cuDriverGetVersion(ctypes.byref(driver))
    )
    numbers = []
    for wanted in (MAJOR, MINOR, INTEGRATED):
        value = ctypes.c_int()
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(value), wanted, device)
        numbers.append(value.value)
    if failed:
        return None
    major, minor, integrated = numbers
    version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
    return Gpu(name.value.decode(), f"sm_{major}{minor}", memory.value, bool(integrated), version)
