"""A test double of TensorRT's Python module: engines are ONNX graphs that ONNX Runtime executes on the CPU.

It has TensorRT's interface and rules for addresses, shapes, profiles, streams and caches written in place, on the
memory of `machine.py`. It shows nothing of TensorRT's parser, builder, kernels, precision or speed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from tests.doubles.machine import Fault, Machine, Work

NUMPY = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
Shape = tuple[int, ...]


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, message: str) -> None: ...


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Dims(tuple):  # type: ignore[type-arg]
    """Prints like TensorRT's."""


def plan(
    graph: Path,
    profiles: Sequence[dict[str, Any]],
    cache_length: int | None = None,
    spoiled: str = "",
    factor: float = 1.125,
) -> bytes:
    """The bytes of an engine. profiles: input -> (least, best, most). spoiled: an output whose second half comes out
    `factor` times as large."""
    document = {
        "graph": str(graph),
        "profiles": list(profiles),
        "cache_length": cache_length,
        "spoiled": spoiled,
        "factor": factor,
    }
    return b"double" + json.dumps(document).encode()


class Engine:
    def __init__(self, machine: Machine, logger: ILogger, document: dict[str, Any]) -> None:
        self.machine, self.logger = machine, logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(
            document["graph"], options, providers=["CPUExecutionProvider"]
        )
        self.in_place = document["cache_length"] is not None
        fixed = {"M": document["cache_length"]} if self.in_place else {}
        sides = (
            (TensorIOMode.INPUT, self.session.get_inputs()),
            (TensorIOMode.OUTPUT, self.session.get_outputs()),
        )
        self.tensors = {t.name: (mode, t) for mode, tensors in sides for t in tensors}
        self.symbols = {n: tuple(fixed.get(d, d) for d in t.shape) for n, (_, t) in self.tensors.items()}
        self.profiles = document["profiles"]
        self.spoiled, self.factor = document["spoiled"], document["factor"]
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name][1].type

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 for a size that varies in some profile; TensorRT makes one that does not static."""
        return Dims(d if isinstance(d, int) else -1 for d in self.symbols[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Dims]:
        return [Dims(shape) for shape in self.profiles[index][name]]

    def create_execution_context(self, strategy: Any) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.machine = engine, engine.machine
        self.activations = engine.machine.allocate(1)
        self.profile = 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.flushed: dict[str, Shape] | None = None  # the shapes of the last run that was no capture
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < len(self.engine.profiles):
            return self._refused(f"profile {index} of {len(self.engine.profiles)}")
        self.profile, self.shapes, self.flushed = index, {}, None
        self.machine.enqueue(stream, Work("profile", [], [(self.activations, 1)], lambda: None))
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if not isinstance(shape, tuple):
            raise TypeError("a shape is a tuple")
        fixed = self.engine.get_tensor_shape(name)
        least, _, most = self.engine.profiles[self.profile].get(name, (fixed, fixed, fixed))
        fits = len(shape) == len(fixed) and all(
            a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        )
        if not fits:
            return self._refused(f"{name} {shape} is outside of profile {self.profile}: {least} to {most}")
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where the inputs do not say."""
        sizes = self._sizes()
        return Dims(sizes.get(d, -1) if isinstance(d, str) else d for d in self.engine.symbols[name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors or not address or address % 256:
            return self._refused(f"address {address:#x} of {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        unset = [n for n in engine.tensors if n not in self.addresses]
        unset += [n for n in engine.tensors if -1 in self.get_tensor_shape(n)]
        if unset:
            raise Fault(f"no address or no shape is set for {', '.join(unset)}")
        if self.machine.is_capturing(stream) and self.flushed != self.shapes:
            return self._refused("these shapes were not run before they are captured")
        self._check_cache()
        bound = {name: (self.addresses[name], self._shape(name)) for name in engine.tensors}
        ranges = {name: (address, self._bytes(name, shape)) for name, (address, shape) in bound.items()}
        modes = {name: engine.get_tensor_mode(name) for name in bound}
        reads = [ranges[name] for name, mode in modes.items() if mode == TensorIOMode.INPUT]
        writes = [ranges[name] for name, mode in modes.items() if mode == TensorIOMode.OUTPUT]
        writes.append((self.activations, 1))
        work = Work(f"engine profile {self.profile}", reads, writes, lambda: self._run(bound))
        self.machine.enqueue(stream, work)
        self.runs += 1
        if not self.machine.is_capturing(stream):
            self.flushed = dict(self.shapes)
        return True

    def _run(self, bound: dict[str, tuple[int, Shape]]) -> None:
        binding = self.engine.session.io_binding()
        for name, (address, shape) in bound.items():
            mode, tensor = self.engine.tensors[name]
            of = NUMPY[tensor.type]
            data = self.machine.view(address, self._bytes(name, shape)).ctypes.data
            bind = binding.bind_input if mode == TensorIOMode.INPUT else binding.bind_output
            bind(name, "cpu", 0, of, list(shape), data)
        self.engine.session.run_with_iobinding(binding)
        if self.engine.spoiled in bound:
            address, shape = bound[self.engine.spoiled]
            of = NUMPY[self.engine.tensors[self.engine.spoiled][1].type]
            values = self.machine.view(address, self._bytes(self.engine.spoiled, shape)).view(of)
            values[values.size // 2 :] *= of.type(self.engine.factor)

    def _check_cache(self) -> None:
        """What KVCacheUpdate demands: one buffer is input and output."""
        for name in self.engine.tensors if self.engine.in_place else ():
            if name.startswith("present."):
                past = "past." + name.removeprefix("present.")
                if self.addresses[name] != self.addresses[past]:
                    raise Fault(f"{name} is not written where {past} lies")

    def _sizes(self) -> dict[str, int]:
        """What the letters in the inputs' shapes stand for."""
        sizes: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for symbol, size in zip(self.engine.symbols[name], shape, strict=True):
                if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
                    raise Fault(f"{symbol} is {sizes[symbol]} and {size} (in {name})")
        return sizes

    def _shape(self, name: str) -> Shape:
        return tuple(self.get_tensor_shape(name))

    def _bytes(self, name: str, shape: Shape) -> int:
        return int(np.prod(shape, dtype=np.int64)) * NUMPY[self.engine.tensors[name][1].type].itemsize

    def _refused(self, why: str) -> bool:
        self.engine.logger.log(Severity.ERROR, why)
        return False


def tensorrt_double(machine: Machine, version: str = "10.16.1") -> ModuleType:
    """The module `tensorrt`; `engines` lists what was deserialised."""
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.engines = []
    trt.Builder = None  # not doubled; by its name a module is told from a folder that is called like it
    trt.ILogger, trt.TensorIOMode = ILogger, TensorIOMode
    trt.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    trt.nptype = lambda of: NUMPY[of].type

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: Any) -> Engine | None:
            machine.need_context()
            read = bytes(content)
            if not read.startswith(b"double"):
                self.logger.log(Severity.ERROR, "the magic tag\ndoes not match")
                return None
            trt.engines.append(Engine(machine, self.logger, json.loads(read[6:])))
            return trt.engines[-1]

    trt.Runtime = Runtime
    return trt
