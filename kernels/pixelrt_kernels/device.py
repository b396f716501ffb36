"""What launching a kernel needs of a GPU. `pixelrt.cuda` gives one through PyCUDA; tests bring others."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Grid = tuple[int, int, int]


class Device(Protocol):
    """Memory and kernels of one GPU. All calls are in order; `download` waits for what came before."""

    def upload(self, array: Any) -> Any:
        """A buffer with a copy of what `contiguous` gives; an array that lies on this GPU is its own buffer."""
        ...

    def allocate(self, size: int) -> Any:
        """A buffer of `size` bytes (at least one), its content unspecified."""
        ...

    def download(self, buffer: Any, shape: tuple[int, ...], of: DTypeLike) -> NDArray[Any]:
        """The first bytes of a buffer as an array."""
        ...

    def launch(self, kernel: str, grid: Grid, block: Grid, shared: int, *arguments: Any) -> None:
        """Start a kernel of the fat binary. arguments: buffers and numpy scalars; shared: bytes."""
        ...


def contiguous(array: Any, of: DTypeLike) -> Any:
    """What `Device.upload` takes: an array on a GPU as it is, or a contiguous numpy array of this type."""
    if not hasattr(type(array), "__cuda_array_interface__"):
        return np.ascontiguousarray(array, of)
    if array.dtype != np.dtype(of):
        raise ValueError(f"need {np.dtype(of)} on the GPU, got {array.dtype}")
    return array


def blocks(items: int, each: int) -> int:
    """How many blocks of `each` hold `items`."""
    return -(-items // each)


def int32(*values: int) -> list[np.int32]:
    return [np.int32(value) for value in values]
