"""A `Device` that runs the kernels on the CPU, by cuda.h; poisoned and guarded memory."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pixelrt_kernels.device import Grid
from pixelrt_kernels.library import HERE

GUARD = 64  # bytes before and after each buffer


def compiled(program: str, folder: Path, *options: str) -> Path:
    """The library that emulates. program: a C++ compiler."""
    library = folder / "emulation.so"
    here = Path(__file__).parent
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", *options]
    command = [program, *flags, f"-I{HERE}", str(here / "kernels.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


class EmulatedDevice:
    def __init__(self, library: Path, backwards: bool = False) -> None:
        """backwards: the last thread of a block runs first."""
        self.backwards = int(backwards)
        self.emulate = ctypes.CDLL(str(library)).emulate
        self.buffers: list[NDArray[np.uint8]] = []

    def upload(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        assert array.flags.c_contiguous
        buffer = self.allocate(array.nbytes)
        buffer[GUARD : GUARD + array.nbytes] = array.reshape(-1).view(np.uint8)
        return buffer

    def allocate(self, size: int) -> NDArray[np.uint8]:
        whole = np.full(size + 2 * GUARD + 16, 0xA5, np.uint8)
        start = -(whole.ctypes.data + GUARD) % 16
        buffer = whole[start : start + size + 2 * GUARD]
        self.buffers.append(buffer)
        return buffer

    def download(self, buffer: NDArray[np.uint8], shape: tuple[int, ...], of: DTypeLike) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(of).itemsize
        assert size <= len(buffer) - 2 * GUARD
        return buffer[GUARD : GUARD + size].copy().view(of).reshape(shape)

    def launch(self, kernel: str, grid: Grid, block: Grid, shared: int, *arguments: Any) -> None:
        values = [
            np.array([a.ctypes.data + GUARD], np.uint64) if isinstance(a, np.ndarray) else np.array([a])
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_uint * 6)(*grid, *block)
        assert not self.emulate(kernel.encode(), sizes, shared, self.backwards, pointers), kernel
        for buffer in self.buffers:
            assert np.all(buffer[:GUARD] == 0xA5) and np.all(buffer[-GUARD:] == 0xA5), (
                f"{kernel} wrote outside"
            )
