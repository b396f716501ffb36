"""Graphs on ONNX Runtime."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelrt.bundle import Bundle, GraphFile
from pixelrt.engine import HostMemory, Joined, Value
from pixelrt.errors import InputError, MissingExtra

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise MissingExtra("onnxruntime", "cpu") from error

VERSION: str = onnxruntime.__version__
# The first release whose CPU provider has TensorScatter (tried: 1.23.2 and 1.24.4 lack it, 1.25.0 and 1.31.1 run it).
IN_PLACE_SINCE = (1, 25)
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


SHORTLIST = "language_shortlist"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
M_MMAP_THRESHOLD, MMAP_FROM = -3, 1 << 20  # glibc's malloc.h; bytes


def return_freed_weights() -> None:
    """Let freed blocks of 1 MiB and more go back to the system, for this process.

    ONNX Runtime repacks rounded weights when it loads them, and glibc keeps what is freed meanwhile: an int4 graph of
    226 MB (blocks of 32) took 600 MB to load without this and 356 MB with it, in the same time. C libraries without
    mallopt are left alone.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


def as_written(options: onnxruntime.SessionOptions) -> None:
    """Nothing fused, folded or repacked: weights stay in their mapped file, and what is made of one is freed.

    In the order of the file: the default one widens all weights before it multiplies with the first.
    """
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")


class OrtEngine:
    """One ONNX Runtime session."""

    def __init__(
        self, file: GraphFile, *, threads: int = 0, provider: str = CPU, plain: bool = False
    ) -> None:
        """threads: of one operator; 0 is one per core. plain: run the graph as it is written, slowly, in little memory.
        Raises InputError: a graph or a provider that does not load."""
        self.file, self.memory = file, HostMemory(file.activations)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if plain:
            as_written(options)
        return_freed_weights()
        try:
            self._session = onnxruntime.InferenceSession(
                str(file.path), options, providers=list(dict.fromkeys([provider, CPU]))
            )
        except Exception as error:  # of ONNX Runtime's own many kinds
            first = str(error).partition("\n")[0]
            raise InputError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {file.path}: {first}. "
                "Export the bundle again, or install the version that pyproject.toml names."
            ) from error
        if self._session.get_providers()[0] != provider:
            raise InputError(
                f"ONNX Runtime {onnxruntime.__version__} cannot start its {provider}. "
                "Install the CUDA and cuDNN that it names, or use --backend onnxruntime."
            )
        self._inputs = {i.name: NUMPY_TYPES[i.type] for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._spare: list[_Bound] = []  # at most one

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        buffers = {name: np.asarray(buffer) for name, buffer in (into or {}).items()}
        bound = self._bound_to(inputs, buffers)
        binding = bound.binding
        for name, dtype in self._inputs.items():
            if name not in bound.inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(inputs[name], dtype))
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs_as_ortvaluevector()
        found: dict[str, Value] = {
            name: buffers[name] if name in buffers else values[i].numpy()
            for i, name in enumerate(self._outputs)
        }
        if buffers:
            for name in found.keys() - buffers.keys():  # else the next run would write to what this one gave
                binding.bind_output(name, "cpu")
            self._spare[:] = [bound]
        return found

    def _bound_to(self, inputs: Mapping[str, Value | Joined], buffers: Mapping[str, np.ndarray]) -> _Bound:
        """The binding of the last run if that had the same buffers, for this thread alone; else a new one."""
        with suppress(IndexError):
            spare = self._spare.pop()
            if spare.fits(inputs, buffers):
                return spare
        binding = self._session.io_binding()
        for name in self._outputs:
            if name in buffers:
                buffer = buffers[name]
                binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        own = {id(buffer): buffer for buffer in buffers.values()}
        caches = {}
        for name, dtype in self._inputs.items():
            cache = own.get(id(inputs[name]))
            if cache is not None and cache.dtype == dtype and cache.flags.c_contiguous:
                binding.bind_input(name, "cpu", 0, dtype, cache.shape, cache.ctypes.data)
                caches[name] = weakref.ref(cache)
        return _Bound(binding, caches, {name: weakref.ref(buffer) for name, buffer in buffers.items()})


@dataclass(frozen=True)
class _Bound:
    """A binding that has a cache's buffers and does not keep them alive. To bind them for every token takes time."""

    binding: Any
    inputs: Mapping[str, weakref.ref[np.ndarray]]
    outputs: Mapping[str, weakref.ref[np.ndarray]]

    def fits(self, inputs: Mapping[str, Value | Joined], buffers: Mapping[str, np.ndarray]) -> bool:
        return (
            self.outputs.keys() == buffers.keys()
            and all(buffer() is buffers[name] for name, buffer in self.outputs.items())
            and all(cache() is inputs[name] for name, cache in self.inputs.items())
        )


class OrtBackend:
    """ONNX Runtime's CPU provider: fp32 activations, whatever the type of the stored weights.

    With `cuda` its CUDA provider: fp16 activations but where a stage was exported in fp32, and the language graph's
    twin, whose operators that provider has long had. Caches and features cross to the host between calls.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        activations: str | None = None,
        compatible: bool | None = None,
        threads: int = 0,
        cuda: bool = False,
        plain: bool = False,
        shortlist: bool = True,
    ) -> None:
        """activations: of all graphs, for trials. compatible: run the language graph's twin for older runtimes; by
        default where this one is older. plain: see `OrtEngine`. shortlist: run the twin whose two largest logits alone
        are exact, where the bundle has one. Raises InputError: cuda, and this onnxruntime has none.
        """
        if cuda and CUDA not in onnxruntime.get_available_providers():
            raise InputError(
                f"The onnxruntime {onnxruntime.__version__} that is installed has no CUDA. "
                "Run: pip uninstall onnxruntime && pip install 'pixelrt[gpu]'"
            )
        self.bundle, self.activations, self.threads, self.plain = bundle, activations, threads, plain
        self.shortlist = shortlist and not plain
        self.provider, self.name = (CUDA, "onnxruntime-cuda") if cuda else (CPU, "onnxruntime-cpu")
        version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
        self.compatible = cuda or version < IN_PLACE_SINCE if compatible is None else compatible

    def open(self, graph: str) -> OrtEngine:
        name = self._language() if graph == "language" else graph
        activations = self.activations or self._activations(name)
        file = self.bundle.graph(name, activations=activations)
        return OrtEngine(file, threads=self.threads, provider=self.provider, plain=self.plain)

    def _language(self) -> str:
        if self.compatible:
            return "language_compat"
        fits = self.provider == CPU and self.activations in (None, "float32")
        listed = SHORTLIST in self.bundle.manifest["graphs"]
        return SHORTLIST if self.shortlist and fits and listed else "language"

    def _activations(self, name: str) -> str:
        manifest = self.bundle.manifest
        stage = manifest["graphs"].get(name, {}).get("stage", name)
        narrow = self.provider == CUDA and manifest["precision"].get(stage) != "fp32"
        return "float16" if narrow else "float32"
