"""What launching a kernel needs of a GPU. `pixelrt.cuda` gives one through PyCUDA; tests bring others."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Grid = tuple[int, int, int]


class Device(Protocol):
    """Memory and kernels of one GPU. All calls are in order; `download` waits for what came before."""

    def upload(self, array: NDArray[Any]) -> Any:
        """A buffer with a contiguous copy."""
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


def blocks(items: int, each: int) -> int:
    """How many blocks of `each` hold `items`."""
    return -(-items // each)


def int32(*values: int) -> list[np.int32]:
    return [np.int32(value) for value in values]
