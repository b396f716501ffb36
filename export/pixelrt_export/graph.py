"""A small builder of ONNX graphs whose weights live in a bundle's one weight file.

Values are strings (names), as in ONNX itself. Shapes are given by letters in each graph's own docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pixelrt_export.weight_file import ONNX_DTYPES, Weights

# ONNX IR versions that first carry each opset we write.
IR_VERSIONS = {20: 9, 21: 10, 24: 11}

Array = np.ndarray
Make = Callable[[], Array]
# graph, x (…, K), name of the layer, its weight (K, N) -> x W
Product = Callable[["Graph", str, str, Make], str]


def plain_product(g: Graph, x: str, name: str, weight: Make) -> str:
    """x W with W in the type of all weights."""
    return str(g.op("MatMul", x, g.weight(f"{name}.weight", weight)))


class Graph:
    """Nodes, inputs and outputs of one thin `.onnx` file.

    activations: float32 or float16, the type that flows between nodes.
    storage: float32 or float16, the type of weights on disk; a Cast follows each weight where the two differ
    (ONNX Runtime and TensorRT fold it when they load the graph).
    product: how a linear layer multiplies; `quantize` has others.
    """

    def __init__(
        self,
        name: str,
        weights: Weights,
        *,
        activations: str,
        storage: str,
        opset: int,
        product: Product = plain_product,
    ) -> None:
        self.name, self.weights, self._product = name, weights, product
        self.activations, self.storage, self.opset = activations, storage, opset
        self.products: dict[str, str] = {}  # linear layer -> the value that it multiplies
        self.taps: dict[str, str] = {}  # name of a place in the model -> the value there
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._functions: dict[str, onnx.FunctionProto] = {}
        self._values: dict[str, str] = {}
        self._scope: list[str] = []
        self._used: dict[str, int] = {}

    # ---- values -----------------------------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all nodes made inside: `layers.3/q_proj/MatMul`."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input. dtype `activations` follows the graph's own type."""
        self.inputs.append({"name": name, "dtype": dtype, "shape": list(shape)})
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Name `value` as a graph output, cast to `dtype` where the graph's activations differ from it."""
        wanted = self.activations if dtype == "activations" else dtype
        if value != name:
            kind = "Identity" if wanted == self.activations else "Cast"
            attributes = {"to": ONNX_DTYPES[wanted]} if kind == "Cast" else {}
            self._nodes.append(helper.make_node(kind, [value], [name], name=f"{name}/{kind}", **attributes))
        self.outputs.append({"name": name, "dtype": dtype, "shape": list(shape)})

    def weight(self, name: str, make: Make) -> str:
        """A tensor of the weight file, in the activation type. `make` is called when it is first written."""
        if name not in self._values:
            stored = self.stored(name, self.storage, make)
            same = self.storage == self.activations
            self._values[name] = stored if same else self.cast(stored, self.activations)
        return self._values[name]

    def stored(self, name: str, dtype: str, make: Make) -> str:
        """A tensor of the weight file as it is stored there."""
        if name not in self._initializers:
            slot = self.weights.put(name, dtype, make)
            tensor = onnx.TensorProto(name=name, data_type=ONNX_DTYPES[slot.dtype], dims=slot.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", self.weights.path.name),
                ("offset", slot.offset),
                ("length", slot.length),
            ):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def constant(self, array: Array | Sequence[int] | float) -> str:
        """A small constant kept inside the `.onnx` file; floats take the activation type."""
        value = np.asarray(array)
        value = value.astype(self.activations if value.dtype.kind == "f" else np.int64)
        name = f"const.{value.dtype}.{'x'.join(map(str, value.shape))}.{value.tobytes().hex()}"
        if name not in self._initializers:
            if len(name) > 120:
                raise ValueError(f"constant of {value.size} values belongs in the weight file")
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def tap(self, place: str, value: str) -> str:
        """Give a place in the model a name, so that what flows there can be compared with the original."""
        self.taps[place] = value
        return value

    def shape(self, name: str) -> list[int]:
        """Of a tensor that `stored` or `constant` gave."""
        return list(self._initializers[name].dims)

    def zero_int8(self) -> str:
        """The zero point of symmetric int8."""
        name = "const.int8.zero"
        self._initializers.setdefault(name, numpy_helper.from_array(np.zeros((), np.int8), name))
        return name

    def byte(self, value: int) -> str:
        """A zero point of uint8."""
        name = f"const.uint8.{value}"
        self._initializers.setdefault(name, numpy_helper.from_array(np.uint8(value), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: Sequence[str] | int = 1, **attributes: Any) -> Any:
        """Append a node; its output name, or a list of them where there are several."""
        base = "/".join([*self._scope, kind])
        self._used[base] = self._used.get(base, 0) + 1
        name = base if self._used[base] == 1 else f"{base}_{self._used[base]}"
        if isinstance(outputs, int):
            outputs = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes))
        return outputs[0] if len(outputs) == 1 else list(outputs)

    def call(self, function: onnx.FunctionProto, *inputs: str, **attributes: Any) -> str:
        """Append a node of an operator of our own; its body of standard operators travels in the file.

        Any runtime can inline the body; one that has a kernel of this domain and name uses that instead.
        """
        self._functions[function.name] = function
        return str(self.op(function.name, *inputs, domain=function.domain, **attributes))

    # ---- shorthands -------------------------------------------------------------------------------------

    def cast(self, x: str, dtype: str) -> str:
        return str(self.op("Cast", x, to=ONNX_DTYPES[dtype]))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """0 copies the input's dimension, -1 is what remains."""
        return str(self.op("Reshape", x, self.constant(list(shape))))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return str(self.op("Transpose", x, perm=list(perm)))

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        return str(self.op("Slice", x, self.constant([start]), self.constant([end]), self.constant([axis])))

    def linear(self, x: str, name: str, weight: Make, bias: Make | None = None) -> str:
        """y = x W^T + b with W (out, in) as checkpoints hold it; stored transposed, (in, out)."""
        with self.scope(name.rsplit(".", 1)[-1]):
            self.products[name] = x
            y = self._product(self, x, name, lambda: weight().T)
            return str(y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias)))

    def layer_norm(self, x: str, name: str, weight: Make, bias: Make, epsilon: float) -> str:
        """Normalise the last axis; the reduction runs in fp32 (stash_type 1) whatever the activations."""
        scale, shift = self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)
        return str(self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon, stash_type=1))

    def softmax(self, x: str) -> str:
        """Over the last axis, in fp32."""
        if self.activations == "float32":
            return str(self.op("Softmax", x, axis=-1))
        return self.cast(self.op("Softmax", self.cast(x, "float32"), axis=-1), self.activations)

    def split_heads(self, x: str, heads: int) -> str:
        """(B, S, heads * d) -> (B, heads, S, d)"""
        width = self.op("Reshape", x, self.constant([0, 0, heads, -1]))
        return self.transpose(width, [0, 2, 1, 3])

    def attention(self, q: str, k: str, v: str, heads: int, bias: str | None = None) -> str:
        """softmax(q k^T + bias) v for q (B, S, C), k (B, T, C), v (B, T, C); q is already scaled.

        Written in MatMul and Softmax, which every TensorRT and ONNX Runtime takes; B may be 1 on either side.
        """
        q, k, v = (self.split_heads(x, heads) for x in (q, k, v))
        return self.attend(q, self.transpose(k, [0, 1, 3, 2]), v, bias)

    def attend(self, q: str, k: str, v: str, bias: str | None = None) -> str:
        """The same for split heads: q (B, heads, S, d), k (B, heads, d, T), v (B, heads, T, d) -> (B, S, C)."""
        scores = self.op("MatMul", q, k)
        if bias is not None:
            scores = self.op("Add", scores, bias)
        mixed = self.op("MatMul", self.softmax(scores), v)
        return self.reshape(self.transpose(mixed, [0, 2, 1, 3]), [0, 0, -1])

    # ---- the file ---------------------------------------------------------------------------------------

    def _value_info(self, tensor: dict[str, Any]) -> onnx.ValueInfoProto:
        dtype = self.activations if tensor["dtype"] == "activations" else tensor["dtype"]
        return helper.make_tensor_value_info(tensor["name"], ONNX_DTYPES[dtype], tensor["shape"])

    def model(self) -> onnx.ModelProto:
        """The graph so far, its large tensors named and not held."""
        proto = helper.make_graph(
            self._nodes,
            self.name,
            [self._value_info(t) for t in self.inputs],
            [self._value_info(t) for t in self.outputs],
            list(self._initializers.values()),
        )
        domains = sorted({node.domain for node in self._nodes} - {""})
        return helper.make_model(
            proto,
            opset_imports=[
                helper.make_opsetid("", self.opset),
                *(helper.make_opsetid(domain, 1) for domain in domains),
            ],
            functions=list(self._functions.values()),
            ir_version=IR_VERSIONS[self.opset],
            producer_name="pixelrt",
        )

    def save(self, path: Path) -> None:
        """Write the thin file; it must lie beside the weight file it names."""
        path.write_bytes(self.model().SerializeToString(deterministic=True))
