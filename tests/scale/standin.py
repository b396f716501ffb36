"""Stands in for Triton's ONNX Runtime backend, which nvidia-pytriton's server lacks: a leaf's model.py in Python."""

import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx" / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ([port["name"] for port in config[side]] for side in ("input", "output"))

    def execute(self, requests):
        responses = []
        for request in requests:
            given = {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs
            }
            values = self.session.run(self.outputs, given)
            tensors = [pb_utils.Tensor(name, value) for name, value in zip(self.outputs, values, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
