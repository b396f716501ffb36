"""What one optimisation profile of a TensorRT engine takes, and its execution context."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelrt.cuda_graph import CudaGraph
from pixelrt.errors import InputError
from pixelrt.tensorrt import Library

if TYPE_CHECKING:
    from pixelrt.cuda import Stream

Shape = tuple[int, ...]
Shapes = tuple[tuple[str, Shape], ...]


class Profile:
    """One optimisation profile with a context of its own: switching would invalidate its CUDA graphs."""

    def __init__(
        self, library: Library, engine: Any, index: int, inputs: Iterable[str], stream: Stream
    ) -> None:
        trt = library.module
        # Activations of the largest shapes of this profile, not of all profiles.
        self.context = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        if self.context is None:
            raise InputError(
                f"{library.title} has no memory for an engine's activations. Close other programs on the GPU, "
                "or build with smaller sizes."
            )
        if not self.context.set_optimization_profile_async(index, stream.handle):
            raise RuntimeError(f"TensorRT refused optimisation profile {index}")
        stream.inner.synchronize()
        self.least: dict[str, Shape] = {}
        self.most: dict[str, Shape] = {}
        for name in inputs:
            shape = tuple(engine.get_tensor_shape(name))
            ends = engine.get_tensor_profile_shape(name, index) if -1 in shape else [shape] * 3
            self.least[name], _, self.most[name] = (tuple(end) for end in ends)
        self.graphs: OrderedDict[tuple[Any, ...], CudaGraph | None] = OrderedDict()
        self._outputs: dict[Shapes, dict[str, Shape]] = {}
        self._set: Shapes | None = None

    def fits(self, shapes: Shapes) -> bool:
        return all(
            len(shape) == len(self.most[name])
            and all(a <= n <= b for a, n, b in zip(self.least[name], shape, self.most[name], strict=True))
            for name, shape in shapes
        )

    @property
    def size(self) -> int:
        """Of the largest inputs together: the narrowest profile that fits is the one tuned for it."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.most.values())

    def set(self, shapes: Shapes) -> None:
        if self._set != shapes:
            for name, shape in shapes:
                if not self.context.set_input_shape(name, shape):
                    raise RuntimeError(f"TensorRT refused shape {shape} of {name}")
            self._set = shapes

    def outputs(self, shapes: Shapes, names: Iterable[str]) -> dict[str, Shape]:
        """Shapes of the outputs, asked of TensorRT once for each set of input shapes."""
        if shapes not in self._outputs:
            self.set(shapes)
            found = {name: tuple(self.context.get_tensor_shape(name)) for name in names}
            unknown = [name for name, shape in found.items() if min(shape, default=0) < 0]
            if unknown:
                raise RuntimeError(f"TensorRT does not know the shape of {', '.join(unknown)}")
            self._outputs[shapes] = found
        return self._outputs[shapes]
