"""A graph that runs before it is written: its weights are fed, and what each linear layer multiplies comes out.

The same builders as in a bundle, so names and arithmetic are the bundle's. In fp32, on ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from pixelrt.engine_ort import return_freed_weights

from pixelrt_export.graph import Graph
from pixelrt_export.weight_file import Slot, narrowed


class HeldWeights:
    """Tensors in memory, float32, in place of a weight file."""

    def __init__(self) -> None:
        self.path = Path("held")
        self.arrays: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def put(self, name: str, dtype: str, make: Callable[[], np.ndarray]) -> Slot:
        if name not in self.arrays:
            self.arrays[name] = narrowed(name, make(), "float32")
        return Slot(name, "float32", self.arrays[name].shape, 0, 0)


class Probe:
    """`weights` may be changed between runs."""

    def __init__(self, build: Callable[[Graph], None], opset: int, tapped: bool = True) -> None:
        """build: writes one graph. tapped: what linear layers multiply can be asked for, and so stays until the end
        of a run: 0.7 GB of CLIP-L."""
        return_freed_weights()
        held = HeldWeights()
        g = Graph("probe", held, activations="float32", storage="float32", opset=opset)
        build(g)
        self.weights, self.products = held.arrays, dict(g.products)
        model = g.model()
        graph = model.graph
        small = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        del graph.initializer[:]
        graph.initializer.extend(small)
        for name, array in self.weights.items():
            graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
        named = {output.name for output in graph.output} | {value.name for value in graph.input}
        self._tapped = sorted(set(self.products.values()) - named) if tapped else []
        for value in self._tapped:
            graph.output.append(helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = (
            False  # it grows by doubling: 1.1 GB for CLIP-L, which uses a fifth of it
        )
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray], taps: bool = True) -> dict[str, np.ndarray]:
        """Outputs by name; with taps, of each value in `products` what it was."""
        names = self._outputs if taps else [name for name in self._outputs if name not in self._tapped]
        found = self._session.run(names, {**self.weights, **inputs})
        return {**inputs, **dict(zip(names, found, strict=True))}
