"""A bundle to spoil, and the tools to do it with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from pixelrt.bundle import write_manifest


class Faulty:
    """A copy of a bundle to spoil; `sealed` makes its manifest agree with its files again."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(source, folder))
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    def sealed(self) -> Path:
        names = list(self.manifest.pop("files"))
        write_manifest(self.folder, self.manifest, names)
        return self.folder

    def graph(self, name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
        file = self.folder / f"{name}.fp32.onnx"
        model = onnx.load(file, load_external_data=False)
        edit(model)
        file.write_bytes(model.SerializeToString())

    def weight(self, graph: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a stored tensor (int4: its bytes) where it lies, for every graph that has it."""
        model = onnx.load(self.folder / f"{graph}.fp32.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        place = {entry.key: entry.value for entry in tensor.external_data}
        kinds = {onnx.TensorProto.INT4: np.uint8, onnx.TensorProto.INT8: np.int8}
        kind = kinds.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = (-1,) if tensor.data_type == onnx.TensorProto.INT4 else tuple(tensor.dims)
        count, offset = int(place["length"]) // np.dtype(kind).itemsize, int(place["offset"])
        data = np.memmap(self.folder / "weights.data", kind, "r+", offset, (count,))
        data[:] = change(np.array(data).reshape(shape)).reshape(-1)
        data.flush()


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def insert(model: onnx.ModelProto, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(before)
    for new in reversed(nodes):
        model.graph.node.insert(at, new)


def unpacked(data: np.ndarray) -> np.ndarray:
    nibbles = np.stack([data & 15, data >> 4], 1).reshape(-1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def packed(values: np.ndarray) -> np.ndarray:
    nibbles = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)
