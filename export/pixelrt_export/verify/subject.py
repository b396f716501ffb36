"""The bundle under test: its graph files as they are, with the places that the manifest names as further outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from pixelrt.bundle import Bundle
from pixelrt.engine import Array, Engine, HostMemory
from pixelrt.engine_ort import NUMPY_TYPES
from pixelrt.errors import InputError
from pixelrt.language import Context

from pixelrt_export.verify.original import Reading

# ONNX Runtime looks for external tensors beside the model, and a model in memory lies nowhere.
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class TappedEngine:
    """One graph on ONNX Runtime's CPU provider, as `pixelrt.engine.Engine`, in fp32 activations."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.file, self.memory = bundle.graph(name, activations="float32"), HostMemory()
        self.taps: dict[str, str] = dict(bundle.manifest["graphs"][name].get("taps", {}))
        model = onnx.load(self.file.path, load_external_data=False)
        made = {value for node in model.graph.node for value in node.output}
        given = {output.name for output in model.graph.output}
        if missing := [place for place, value in self.taps.items() if value not in made]:
            raise InputError(f"{self.file.path} has no place {missing[0]}. Export the bundle again.")
        for value in sorted(set(self.taps.values()) - given):
            model.graph.output.append(helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(FOLDER_OPTION, str(bundle.path.resolve()))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name: NUMPY_TYPES[i.type] for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]

    def __call__(
        self, inputs: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        feed = {name: np.ascontiguousarray(inputs[name], dtype) for name, dtype in self._inputs.items()}
        found = dict(zip(self._outputs, self._session.run(None, feed), strict=True))
        for name, buffer in (into or {}).items():
            buffer[...] = found[name]
        return found | {place: found[value] for place, value in self.taps.items()}


def read_in_passes(engine: Engine, reading: Reading, whole: bool) -> dict[str, Array]:
    """Outputs of the language graph, one call or several joined: their rows one after another."""
    passes = (reading.whole,) if whole else reading.steps
    context = Context(engine, len(reading.states))
    found: list[dict[str, Array]] = []
    for part in passes:
        out = context.read(reading.states[part.rows], part.asked, reading.visible[part.rows])
        found.append({name: value for name, value in out.items() if not name.startswith("present.")})
    return {name: np.concatenate([out[name] for out in found], axis=1) for name in found[0]}


def read_together(engine: Engine, readings: list[Reading], idle: Mapping[str, Array]) -> dict[str, Array]:
    """The first tokens of several readings, as many as the shortest has, in one batch."""
    count, batch = min(len(r.states) for r in readings), len(readings)
    seen = np.stack([np.tri(count, dtype=np.bool_) & r.visible[:count] for r in readings])
    inputs: dict[str, Array] = {
        "inputs_embeds": np.stack([r.states[:count] for r in readings]),
        "position_ids": np.tile(np.arange(count), (batch, 1)),
        "attn_mask": seen[:, None],
        "write_indices": np.zeros(batch, np.int64),
        **idle,
    }
    rows = count if engine.file.cache == "in_place" else 0
    for tensor in engine.file.inputs:
        if tensor.name.startswith("past."):
            _, heads, _, width = tensor.shape
            inputs[tensor.name] = np.zeros((batch, int(heads), rows, int(width)), np.float32)
    return engine(inputs)
