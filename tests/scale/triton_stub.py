"""Stands in for triton_python_backend_utils: what the front model uses of it. Leaves are run by ONNX Runtime, and held
to their config.pbtxt as Triton holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.scale.pbtxt import parsed

TRITONSERVER_MEMORY_CPU = 0
TYPES = {"TYPE_FP32": "float32", "TYPE_FP16": "float16", "TYPE_INT64": "int64", "TYPE_BOOL": "bool"}


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> np.ndarray:
        return self.value


class TritonError:
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.sentence, self.code = message, code

    def message(self) -> str:
        return self.sentence


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors, self.told = {tensor.name: tensor for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self.told is not None

    def error(self) -> TritonError | None:
        return self.told


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor:
    return response.tensors[name]


class Request:
    """What Triton hands to `execute`."""

    def __init__(
        self, wanted: tuple[str, ...] = ("answer", "masks"), parameters: str = "", **inputs: Any
    ) -> None:
        self.wanted, self.told = wanted, parameters
        self.inputs = {
            name: Tensor(name, np.array(value if isinstance(value, list) else [[value]], kind(name)))
            for name, value in inputs.items()
        }

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)

    def parameters(self) -> str:
        return self.told


def kind(name: str) -> Any:
    return np.int32 if name == "max_new_tokens" else np.object_


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.inputs.get(name)


class PreferredMemory:
    def __init__(self, kind: int, device: int) -> None:
        assert kind == TRITONSERVER_MEMORY_CPU


class Server:
    """The module, with a repository whose leaves answer."""

    def __init__(self, repository: Path) -> None:
        self.repository, self.calls, self.fails = repository, list[str](), False
        self.sessions: dict[str, Any] = {}
        for item in (Tensor, TritonError, InferenceResponse, PreferredMemory):
            setattr(self, item.__name__, item)
        self.get_input_tensor_by_name = get_input_tensor_by_name
        self.get_output_tensor_by_name = get_output_tensor_by_name
        self.TRITONSERVER_MEMORY_CPU = TRITONSERVER_MEMORY_CPU
        server = self

        class InferenceRequest:
            def __init__(self, **given: Any) -> None:
                self.given = given

            def exec(self) -> InferenceResponse:
                return server.run(**self.given)

        self.InferenceRequest = InferenceRequest

    def run(self, model_name: str, requested_output_names: list[str], inputs: list[Tensor], **_: Any) -> Any:
        import onnxruntime

        self.calls.append(model_name)
        if self.fails:
            return InferenceResponse([], TritonError("a secret of the machine"))
        folder = self.repository / model_name
        config = parsed((folder / "config.pbtxt").read_text())
        given = {tensor.name: tensor.value for tensor in inputs}
        hold(config, "input", given)
        if model_name not in self.sessions:
            file = folder / "1" / "model.onnx" / "model.onnx"
            self.sessions[model_name] = onnxruntime.InferenceSession(str(file))
        values = self.sessions[model_name].run(requested_output_names, given)
        hold(config, "output", dict(zip(requested_output_names, values, strict=True)))
        return InferenceResponse(
            [Tensor(name, value) for name, value in zip(requested_output_names, values, strict=True)]
        )


def hold(config: dict[str, list[Any]], side: str, tensors: dict[str, np.ndarray]) -> None:
    """Names, types and shapes are those of the config."""
    ports = {port["name"][0]: port for port in config[side]}
    assert set(ports) == set(tensors)
    batched = config["max_batch_size"][0] > 0
    for name, port in ports.items():
        shape = tensors[name].shape
        assert tensors[name].dtype == TYPES[port["data_type"][0]], name
        assert not batched or shape[0] <= config["max_batch_size"][0]
        told = port["dims"]
        own = shape[1:] if batched else shape
        assert len(own) == len(told), name
        assert all(size in (-1, here) for size, here in zip(told, own, strict=True)), (name, told, own)
