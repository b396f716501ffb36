"""The GPU of this machine for checks and benchmarks: through PyCUDA where it is installed, else through CuPy."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pixelrt.backends import gpu_is_there
from pixelrt_kernels.library import BUILD_COMMAND, DEVICE, find

__all__ = ["gpu_device", "gpu_is_there"]


def gpu_device() -> AbstractContextManager[Any]:
    """A `Device` to use in `with`. Raises LookupError with what is missing."""
    binary = find(DEVICE)
    if binary is None:
        raise LookupError(f"the GPU code is not built (nvcc; {BUILD_COMMAND})")
    missing = []
    for package, module in (("pycuda", "pixelrt.cuda"), ("cupy", "benchmarks.cupy_device")):
        if importlib.util.find_spec(package) is None:
            missing.append(f"{package} is not installed")
            continue
        try:
            made = importlib.import_module(module)
            return _kernels(made.CudaDevice()) if package == "pycuda" else made.CupyDevice(binary)
        except Exception as error:  # whatever a driver that is absent or too old raises
            missing.append(f"{package}: {type(error).__name__}: {error}")
    raise LookupError("; ".join(missing))


@contextmanager
def _kernels(gpu: Any) -> Iterator[Any]:
    with gpu:
        yield gpu.kernels()
