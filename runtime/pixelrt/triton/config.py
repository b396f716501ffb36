"""config.pbtxt of each model: protobuf's text format, fields as in Triton's model_config.proto."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelrt.bundle import GraphFile
from pixelrt.engines import EngineRecord

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
ANSWER, MASKS = "answer", "masks"
IMAGE, QUERY, MAX_NEW_TOKENS = "image", "query", "max_new_tokens"


class Word(str):
    """A name of an enum: written without quotes."""


@dataclass(frozen=True)
class Port:
    """An input or output: the whole shape, -1 where a size may vary. dtype: Triton's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """One graph on a backend of Triton's own. batch: requests it may put together; 0 where its graph takes none."""

    name: str
    backend: str  # onnxruntime, tensorrt
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batch: int


def front_config(
    name: str,
    *,
    batch: int,
    waiting: int,
    wait_ms: float,
    instances: int,
    gpu: bool,
    parameters: Mapping[str, str],
) -> str:
    """Of the front model. Its questions come one a request; Triton's batcher puts requests together.

    waiting: requests in the queue, further ones are refused. Priority 1 (a probe) goes before the default, 2.
    """
    text, question = Word("TYPE_STRING"), [1]
    return written(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": batch,
            "input": [
                {"name": IMAGE, "data_type": text, "dims": question},
                {"name": QUERY, "data_type": text, "dims": question},
                {"name": MAX_NEW_TOKENS, "data_type": Word("TYPE_INT32"), "dims": question, "optional": True},
            ],
            "output": [
                {"name": ANSWER, "data_type": text, "dims": question},
                {"name": MASKS, "data_type": Word("TYPE_BOOL"), "dims": [-1, -1, -1]},
            ],
            "dynamic_batching": {
                "max_queue_delay_microseconds": round(1e3 * wait_ms),
                "priority_levels": 2,
                "default_priority_level": 2,
                "default_queue_policy": {"max_queue_size": waiting},
            },
            "instance_group": [_instances(instances, gpu)],
            "parameters": [
                {"key": key, "value": {"string_value": value}} for key, value in parameters.items()
            ],
        }
    )


def leaf_config(leaf: Leaf, *, gpu: bool) -> str:
    own = slice(1 if leaf.batch else 0, None)  # Triton adds the first dimension where it batches
    sides = {
        side: [{"name": p.name, "data_type": Word(p.dtype), "dims": list(p.shape[own])} for p in ports]
        for side, ports in (("input", leaf.inputs), ("output", leaf.outputs))
    }
    batching: dict[str, Any] = {"dynamic_batching": {}} if leaf.batch else {}
    return written(
        {"name": leaf.name, "backend": leaf.backend, "max_batch_size": leaf.batch, **sides, **batching}
        | {"instance_group": [_instances(1, gpu)]}
    )


def onnx_leaf(name: str, file: GraphFile, batch: int) -> Leaf:
    """Of a graph as the bundle has it. batch: where the graph takes any number of pictures."""

    def port(tensor: Any) -> Port:
        dtype = file.activations if tensor.dtype == "activations" else tensor.dtype
        return Port(tensor.name, TYPES[dtype], _sizes(tensor.shape))

    inputs, outputs = tuple(map(port, file.inputs)), tuple(map(port, file.outputs))
    return Leaf(name, "onnxruntime", inputs, outputs, batch if _takes_batches(name, inputs, outputs) else 0)


def tensorrt_leaf(name: str, record: EngineRecord, batch: int) -> Leaf:
    """Of an engine, with no more pictures at once than its profiles take."""

    def port(entry: tuple[str, Any]) -> Port:
        return Port(entry[0], TYPES[entry[1].dtype], _sizes(entry[1].shape))

    inputs, outputs = tuple(map(port, record.inputs.items())), tuple(map(port, record.outputs.items()))
    most = [shapes[2][0] for profile in record.profiles.values() for shapes in profile.values()]
    takes = _takes_batches(name, inputs, outputs)
    return Leaf(name, "tensorrt", inputs, outputs, min([batch, *most]) if takes else 0)


def _takes_batches(name: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> bool:
    # The pixel decoder's first dimension is targets or prompts of one picture: nothing to join requests along.
    return name == "encoder" and all(port.shape[0] == -1 for port in (*inputs, *outputs))


def _sizes(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(-1 if isinstance(size, str) else int(size) for size in shape)


def _instances(count: int, gpu: bool) -> dict[str, Any]:
    return {"count": count, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}


def written(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format."""
    lines = []
    for field, value in message.items():
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            lines.append(f"{indent}{field}: [{', '.join(map(str, value))}]")
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                inner = written(item, indent + "  ")
                lines.append(f"{indent}{field} {{\n{inner}{indent}}}" if inner else f"{indent}{field} {{ }}")
            else:
                lines.append(f"{indent}{field}: {_scalar(item)}")
    return "".join(line + "\n" for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, Word) else json.dumps(value)
