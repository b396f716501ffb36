"""An NVIDIA GPU through CuPy, as `pixelrt_kernels.device.Device`: for checks on machines without PyCUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike, NDArray
from pixelrt_kernels.device import Grid


class CupyDevice:
    def __init__(self, binary: Path) -> None:
        """binary: the fat binary that `python -m pixelrt_kernels.build` writes."""
        self.module = cupy.RawModule(path=str(binary))
        self.functions: dict[str, Any] = {}

    def __enter__(self) -> CupyDevice:
        return self

    def __exit__(self, *error: object) -> None:
        cupy.cuda.runtime.deviceSynchronize()

    def upload(self, array: NDArray[Any]) -> Any:
        return cupy.asarray(array.reshape(-1).view(np.uint8))

    def allocate(self, size: int) -> Any:
        return cupy.empty(max(1, size), cupy.uint8)

    def download(self, buffer: Any, shape: tuple[int, ...], of: DTypeLike) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(of).itemsize
        return cupy.asnumpy(buffer[:size]).view(of).reshape(shape)

    def launch(self, kernel: str, grid: Grid, block: Grid, shared: int, *arguments: Any) -> None:
        if kernel not in self.functions:
            self.functions[kernel] = self.module.get_function(kernel)
        self.functions[kernel](grid, block, arguments, shared_mem=shared)
