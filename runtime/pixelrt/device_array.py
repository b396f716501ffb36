"""Arrays in the memory of a GPU, and the pool that the memory comes from.

A block knows the last work that each stream has with it (an event). Whoever uses it on another stream waits for that
on the GPU; the host waits when it asks for the numbers. A block whose last array is gone goes back to the pool, with
its events, and is given out again at the same address: so CUDA graphs fit again.
"""

from __future__ import annotations

import math
import operator
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from pixelrt.cuda import CudaDevice

Bounds = tuple[tuple[int, int], ...]  # start and stop along each axis


class Block:
    """Device memory of one size. `used`: handle of a stream -> the event after its last work with this block."""

    def __init__(self, pool: Pool, size: int, allocation: Any, used: dict[int, Any]) -> None:
        self.size, self.allocation, self.used = size, allocation, used
        self.address = int(allocation)
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give(self)


class Pool:
    """Device memory that was used before, by size. Blocks of a size are given out lowest address first."""

    def __init__(self, allocate: Callable[[int], Any], full: type[Exception]) -> None:
        """full: what `allocate` raises where no memory is left; freed blocks are returned to the GPU then."""
        self._allocate, self._full = allocate, full
        self._free: dict[int, list[tuple[int, Any, dict[int, Any]]]] = defaultdict(list)
        self._taking = threading.Lock()

    def take(self, size: int) -> Block:
        """Its content is unspecified, and other streams may still be at work with it: see `Block.used`."""
        size = _rounded(size)
        with self._taking:
            free = self._free[size]
            if free:
                entry = min(free, key=operator.itemgetter(0))
                free.remove(entry)
                return Block(self, size, *entry[1:])
            try:
                return Block(self, size, self._allocate(size), {})
            except self._full:
                self.trim()
                return Block(self, size, self._allocate(size), {})

    def give(self, block: Block) -> None:
        """May come from any thread, in the middle of anything: takes no lock."""
        self._free[block.size].append((block.address, block.allocation, block.used))

    def trim(self) -> None:
        """Return all free blocks to the GPU, which waits for work with them by itself."""
        for free in list(self._free.values()):
            free.clear()


def _rounded(size: int) -> int:
    """Up to three significant bits, 256 bytes at least, so that sizes meet again; at most a quarter is lost."""
    step = max(256, 1 << max(0, size.bit_length() - 3))
    return max(step, -(-size // step) * step)


class DeviceArray:
    """A contiguous array on a GPU; `pixelrt.engine.Resident`."""

    def __init__(
        self, device: CudaDevice, block: Block, shape: tuple[int, ...], of: DTypeLike, offset: int = 0
    ) -> None:
        """offset: bytes into the block."""
        self.device, self.block, self.offset = device, block, offset
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(of)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        return self.block.address + self.offset

    @property
    def mask_operators(self) -> Any:
        return self.device.mask_operators

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, for CuPy, PyTorch, Numba; waits for the numbers, so that no stream need be named."""
        with self.device:
            for event in list(self.block.used.values()):
                event.synchronize()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an array on a GPU cannot become a numpy array without a copy")
        host = self.device.download(self)
        return host if dtype is None else host.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> DeviceArray:
        """One item or a slice of the first axis; copies: several items of it, a slice of one later axis."""
        if isinstance(index, np.ndarray | list):
            return self.device.gathered(self, np.asarray(index, np.intp))
        axes = index if isinstance(index, tuple) else (index,)
        if isinstance(axes[0], int | np.integer):
            if len(axes) > 1:
                raise TypeError(f"an array on a GPU cannot be indexed by {index!r}")
            first = operator.index(axes[0])
            first += len(self) if first < 0 else 0
            if not 0 <= first < len(self):
                raise IndexError(f"index {axes[0]} of {len(self)}")
            return self._part(first, self.shape[1:])
        bounds = [part.indices(n) for part, n in zip(axes, self.shape, strict=False)]
        if any(step != 1 for _, _, step in bounds):
            raise TypeError(f"an array on a GPU cannot be indexed by {index!r}")
        whole = [(0, n, 1) for n in self.shape[len(bounds) :]]
        cut = [(low, max(low, high)) for low, high, _ in [*bounds, *whole]]
        shape = tuple(high - low for low, high in cut)
        axis = next((i for i, (n, m) in enumerate(zip(shape, self.shape, strict=True)) if n != m), 0)
        if shape[axis + 1 :] != self.shape[axis + 1 :]:
            raise TypeError(f"an array on a GPU cannot be indexed by {index!r}")
        if math.prod(self.shape[:axis]) == 1:
            return self._part(cut[axis][0], shape, axis)
        return self.device.sliced(self, axis, *cut[axis])

    def _part(self, first: int, shape: tuple[int, ...], axis: int = 0) -> DeviceArray:
        step = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        return DeviceArray(self.device, self.block, shape, self.dtype, self.offset + first * step)
