"""Graphs that other models of the same Triton server run: an engine is one call from model to model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixelrt.bundle import Bundle, GraphFile
from pixelrt.engine import Backend, Engine, HostMemory, Joined, Value

LEAVES = ("encoder", "pixel_decoder")


class LeafEngine:
    """A graph, run by the model of its name. Tensors cross through host memory."""

    def __init__(self, name: str, file: GraphFile, pb: Any) -> None:
        """pb: triton_python_backend_utils."""
        self.name, self.file, self.memory, self._pb = name, file, HostMemory(file.activations), pb
        self._outputs = [tensor.name for tensor in file.outputs]
        self._inputs = {
            tensor.name: np.dtype(file.activations if tensor.dtype == "activations" else tensor.dtype)
            for tensor in file.inputs
        }

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Raises RuntimeError: what Triton, or the model, said."""
        given = [
            self._pb.Tensor(name, np.ascontiguousarray(inputs[name], dtype))
            for name, dtype in self._inputs.items()
        ]
        request = self._pb.InferenceRequest(
            model_name=self.name,
            requested_output_names=self._outputs,
            inputs=given,
            preferred_memory=self._pb.PreferredMemory(self._pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(f"the model {self.name} failed: {response.error().message()}")
        # Copied: features outlive the call, and Triton's shared memory is small.
        return {
            name: np.array(self._pb.get_output_tensor_by_name(response, name).as_numpy())
            for name in self._outputs
        }


class LeafBackend:
    """Encoder and pixel decoder as models of the server, the language graph in this process."""

    def __init__(self, bundle: Bundle, here: Backend, activations: str, pb: Any) -> None:
        """here: runs what is no leaf. activations: of the leaves' graphs."""
        self.bundle, self.here, self.activations, self._pb = bundle, here, activations, pb
        self.name = f"triton+{here.name}"

    def open(self, graph: str) -> Engine:
        if graph not in LEAVES:
            return self.here.open(graph)
        return LeafEngine(graph, self.bundle.graph(graph, activations=self.activations), self._pb)
