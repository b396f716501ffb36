"""What a graph runner is to the rest of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pixelrt.bundle import GraphFile

Array = npt.NDArray[Any]
CACHE_IN, CACHE_OUT = "past.", "present."  # how the names of a cache's tensors begin


@runtime_checkable
class Resident(Protocol):
    """An array that lies where its backend keeps it, on a GPU, and may not be computed yet.

    Passed on to another graph of the backend it stays there. `numpy.asarray` waits for it and copies it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def mask_operators(self) -> Any:
        """The functions of `pixelrt_kernels.upsample_mask` for arrays that lie there; see `pixelrt.upsample`."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array: ...


Value = Array | Resident


@dataclass(frozen=True, eq=False)
class Joined:
    """Rows (s, H) from several places as one input (1, S, H): the engine puts them together where it reads them."""

    parts: tuple[Value, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, len(self), *self.parts[0].shape[1:])

    def rows(self, start: int, stop: int) -> Joined:
        """Rows start..stop of all."""
        cut, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                cut.append(part[low:high])
            first += len(part)
        return Joined(tuple(cut))

    def taken(self, index: npt.NDArray[np.intp]) -> Joined:
        """The rows at `index`, which rises."""
        cut, first = [], 0
        for part in self.parts:
            own = index[(index >= first) & (index < first + len(part))] - first
            if len(own):
                cut.append(part if len(own) == len(part) else part[own])
            first += len(part)
        return Joined(tuple(cut))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.concatenate([np.asarray(part, dtype) for part in self.parts])[None]


class Memory(Protocol):
    """Where an engine keeps a cache, and what sizes it takes."""

    step: int  # tokens attended to are best a multiple of this; what is too much is masked

    def most(self, name: str, axis: int) -> int | None:
        """The largest size an input may have along an axis; None for any."""
        ...

    def takes(self, sizes: Mapping[tuple[str, int], int]) -> bool:
        """Whether one call may have inputs of these sizes together, by name and axis."""
        ...

    def zeros(self, name: str, shape: tuple[int, ...]) -> Value:
        """What input `name` can read, and a call can write (`into`)."""
        ...


class HostMemory:
    """numpy's, for graphs that take any size."""

    step = 1

    def __init__(self, of: str = "float32") -> None:
        """of: dtype of the caches."""
        self.of = np.dtype(of)

    def most(self, name: str, axis: int) -> int | None:
        return None

    def takes(self, sizes: Mapping[tuple[str, int], int]) -> bool:
        return True

    def zeros(self, name: str, shape: tuple[int, ...]) -> Value:
        return np.zeros(shape, self.of)


class Engine(Protocol):
    """One loaded graph."""

    @property
    def file(self) -> GraphFile: ...
    @property
    def memory(self) -> Memory: ...
    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Run the graph on named inputs and return its named outputs.

        into: buffers that named outputs are written to. A buffer may also be an input (a cache updated in
        place). Inputs are cast to the graph's types; buffers must have them.
        """
        ...


class Backend(Protocol):
    """Opens the graphs of one bundle on one kind of hardware."""

    name: str

    def open(self, graph: str) -> Engine:
        """`graph` is a key of the manifest's `graphs`; the backend picks the spelling it runs best."""
        ...


def activation_dtype(engine: Engine) -> np.dtype[Any]:
    return np.dtype(engine.file.activations)
