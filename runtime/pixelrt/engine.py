"""What a graph runner is to the rest of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pixelrt.bundle import GraphFile

Array = npt.NDArray[Any]


class Engine(Protocol):
    """One loaded graph."""

    file: GraphFile

    def __call__(
        self, inputs: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
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
