"""An NVIDIA GPU through PyCUDA, as `pixelrt_kernels.device.Device`.

The kernels are machine code for the GPUs of device.flags and PTX for later ones, in one fat binary that
`python -m pixelrt_kernels.build` writes.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import pycuda.driver as driver
from numpy.typing import DTypeLike, NDArray
from pixelrt_kernels.device import Grid
from pixelrt_kernels.library import BUILD_COMMAND, DEVICE, find

from pixelrt.errors import InputError


class CudaDevice:
    """One GPU, its primary context current on this thread inside of `with`. Buffers are freed with their last name.

    Every call of the driver is checked by PyCUDA, which raises `pycuda.driver.Error`.
    """

    def __init__(self, index: int = 0) -> None:
        """Raises InputError: no such GPU, or the kernels were not built."""
        binary = find(DEVICE)
        if binary is None:
            raise InputError(
                f"The GPU code of the kernels is not built. With nvcc at hand, run: {BUILD_COMMAND}"
            )
        driver.init()
        if index >= driver.Device.count():
            raise InputError(f"No GPU {index}: this machine has {driver.Device.count()}.")
        device = driver.Device(index)
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self._binary = str(binary)
        self._context = device.retain_primary_context()
        self._functions: dict[str, Any] = {}

    def __enter__(self) -> CudaDevice:
        self._context.push()
        self._module = driver.module_from_file(self._binary)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._functions.clear()
        del self._module
        self._context.pop()

    def upload(self, array: NDArray[Any]) -> Any:
        buffer = self.allocate(array.nbytes)
        if array.nbytes:
            driver.memcpy_htod(buffer, array)
        return buffer

    def allocate(self, size: int) -> Any:
        return driver.mem_alloc(max(1, size))

    def download(self, buffer: Any, shape: tuple[int, ...], of: DTypeLike) -> NDArray[Any]:
        out = np.empty(shape, of)
        if out.nbytes:
            driver.memcpy_dtoh(out, buffer)
        return out

    def launch(self, kernel: str, grid: Grid, block: Grid, shared: int, *arguments: Any) -> None:
        if kernel not in self._functions:
            self._functions[kernel] = self._module.get_function(kernel)
        self._functions[kernel](*arguments, grid=grid, block=block, shared=shared)
