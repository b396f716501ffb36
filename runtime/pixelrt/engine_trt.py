"""Graphs on TensorRT 10.3 to 11.4 and TensorRT-RTX.

Tensors stay on the GPU between graphs: outputs are `DeviceArray`s, and an input that is one is read where it lies.
What comes from the host goes through pinned memory that is allocated once for each input. Each graph has a stream of
its own, so that the next picture is encoded under this one's answer and no mask waits for it. A call with shapes and
addresses that were there before is a CUDA graph: a decoding step, the encoder.

Threads: an engine serves one call at a time and lets others wait; different engines run at once. All work on an
engine's stream is given under its lock: a CUDA graph notes whatever any thread gives to the stream meanwhile.
"""

from __future__ import annotations

import mmap
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt_kernels.library import DEVICE, source_hash

from pixelrt.bundle import Bundle, GraphFile
from pixelrt.cuda import CudaDevice, Stream
from pixelrt.cuda_graph import CudaGraph, GraphError
from pixelrt.device_array import Block, DeviceArray
from pixelrt.engine import CACHE_IN, Joined, Value
from pixelrt.engines import EngineRecord, Engines, Here, build_command, check, find_engines
from pixelrt.errors import InputError, PixelrtWarning
from pixelrt.tensorrt import Library, open_library
from pixelrt.trt_profile import Profile, Shape, Shapes
from pixelrt.verdict import check_verdict

ALIGNED = 256  # bytes; what TensorRT wants of addresses
GRAPHS_MAX = 16  # CUDA graphs of one profile
STEP = 128  # attended lengths are rounded up to this: one CUDA graph serves as many tokens


class Staging:
    """Where one input's numbers from the host are put together: pinned memory, and its copy on the GPU."""

    def __init__(self, device: CudaDevice, size: int, of: np.dtype[Any]) -> None:
        self.device, self.of = device, of
        self.pinned, self.block = device.pinned(size), device.pool.take(size)
        self.filled = 0

    def put(self, value: Value, stream: Stream) -> None:
        """Append a value behind what is there."""
        start = self.filled
        if isinstance(value, DeviceArray) and value.dtype == self.of:
            self.device.copy(self.block.address + start, value, stream)
            self.filled += value.nbytes
            return
        host = np.asarray(value)
        size = host.size * self.of.itemsize
        part = self.pinned[start : start + size]
        part.view(self.of).reshape(host.shape)[...] = host
        self.device.upload(self.block.address + start, part, stream)
        self.filled += size


class TrtEngine:
    """One deserialised engine; `pixelrt.engine.Engine`, and the `Memory` of its caches."""

    def __init__(
        self,
        library: Library,
        device: CudaDevice,
        file: GraphFile,
        record: EngineRecord,
        plan: Path,
        stream: str,
    ) -> None:
        """file: the graph it was built from; plan: the engine's file, already checked. Raises InputError."""
        self.file, self.memory, self.record = file, self, record
        self.device = device
        in_place = file.cache == "in_place"
        self.step = STEP if in_place else 1
        # With a cache that grows no two calls have the same shapes.
        self.captures = file.cache is None or in_place
        self._calling = threading.Lock()
        with device:
            self.stream = device.stream(stream)
            self._engine = deserialised(library, plan)
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            mode = library.module.TensorIOMode
            modes = {name: self._engine.get_tensor_mode(name) for name in names}
            self.dtypes = {
                name: np.dtype(library.module.nptype(self._engine.get_tensor_dtype(name))) for name in names
            }
            self.inputs = [name for name in names if modes[name] == mode.INPUT]
            self.outputs = [name for name in names if modes[name] == mode.OUTPUT]
            profiles = [
                Profile(library, self._engine, i, self.inputs, self.stream)
                for i in range(self._engine.num_optimization_profiles)
            ]
        self.profiles = sorted(profiles, key=lambda profile: profile.size)
        self._staging: dict[str, Staging] = {}
        self._copied: Any = None  # event after the last copy from pinned memory

    # ---- Memory ---------------------------------------------------------------------------------------------

    def most(self, name: str, axis: int) -> int | None:
        found = [p.most[name][axis] for p in self.profiles if name in p.most]
        return max(found) if found else None

    def takes(self, sizes: Mapping[tuple[str, int], int]) -> bool:
        return any(
            all(p.least[name][axis] <= size <= p.most[name][axis] for (name, axis), size in sizes.items())
            for p in self.profiles
        )

    def zeros(self, name: str, shape: Shape) -> DeviceArray:
        # Rows beyond the end are masked, but 0 * nan is nan: what lay there before must not matter.
        with self._calling, self.device:  # a frame is begun while the one before is answered
            return self.device.zeros(shape, self.dtypes[name], self.stream)

    # ---- Engine ---------------------------------------------------------------------------------------------

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Raises InputError for a size that no profile has."""
        shapes = tuple((name, tuple(inputs[name].shape)) for name in self.inputs)
        with self._calling, self.device:
            profile = self._profile(shapes)
            outputs = self._outputs(profile.outputs(shapes, self.outputs), into or {})
            addresses, blocks = self._bound(inputs)
            addresses.update((name, array.address) for name, array in outputs.items())
            blocks += [array.block for array in outputs.values()]
            self.stream.after(blocks)
            self._run(profile, shapes, addresses)
            self.stream.mark(blocks)
        return dict(outputs)

    def _profile(self, shapes: Shapes) -> Profile:
        for profile in self.profiles:
            if profile.fits(shapes):
                return profile
        raise InputError(self._misfit(shapes))

    def _misfit(self, shapes: Shapes) -> str:
        widest = self.profiles[-1]
        for name, shape in shapes:
            least, most = widest.least[name], widest.most[name]
            if not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=False)):
                return (
                    f"The {self.record.graph} engine takes {name} from {_x(least)} to {_x(most)}, not {_x(shape)}. "
                    "Ask for less, or build it again with larger sizes (pixelrt build --help)."
                )
        listed = ", ".join(f"{name} {_x(shape)}" for name, shape in shapes if not name.startswith(CACHE_IN))
        return f"No profile of the {self.record.graph} engine takes all of: {listed}. Build it again."

    def _outputs(self, shapes: dict[str, Shape], into: Mapping[str, Value]) -> dict[str, DeviceArray]:
        found = {}
        for name, shape in shapes.items():
            given = into.get(name)
            if given is None:
                found[name] = self.device.empty(shape, self.dtypes[name])
                continue
            if not isinstance(given, DeviceArray) or (given.shape, given.dtype) != (shape, self.dtypes[name]):
                raise ValueError(
                    f"{name} needs a buffer {self.dtypes[name]} {shape} on the GPU, "
                    f"got {type(given).__name__} {given.shape}"
                )
            found[name] = given
        return found

    def _bound(self, inputs: Mapping[str, Value | Joined]) -> tuple[dict[str, int], list[Block]]:
        """Addresses of all inputs, those of the host copied, and the blocks that will be at work."""
        addresses, blocks = {}, []
        used = []  # read by a copy only
        if self._copied is not None:
            self._copied.synchronize()  # before pinned memory is written again
        for name in self.inputs:
            value = inputs[name]
            if (
                isinstance(value, DeviceArray)
                and value.device is self.device
                and value.dtype == self.dtypes[name]
                and value.address % ALIGNED == 0
            ):
                addresses[name] = value.address
                blocks.append(value.block)
                continue
            staging = self._staged(name)
            parts = value.parts if isinstance(value, Joined) else (value,)
            self.stream.after([staging.block])
            staging.filled = 0
            for part in parts:
                staging.put(part, self.stream)
            used += [part.block for part in parts if isinstance(part, DeviceArray)]
            addresses[name] = staging.block.address
            blocks.append(staging.block)
        self._copied = self.stream.mark(used)
        return addresses, blocks

    def _staged(self, name: str) -> Staging:
        if name not in self._staging:
            of = self.dtypes[name]
            largest = max(int(np.prod(profile.most[name], dtype=np.int64)) for profile in self.profiles)
            self._staging[name] = Staging(self.device, largest * of.itemsize, of)
        return self._staging[name]

    def _run(self, profile: Profile, shapes: Shapes, addresses: Mapping[str, int]) -> None:
        key = (shapes, tuple(addresses.values()))
        graph = profile.graphs.get(key)
        if graph is not None:
            profile.graphs.move_to_end(key)
            graph.launch(self.stream.handle)
            return
        profile.set(shapes)
        for name, address in addresses.items():
            if not profile.context.set_tensor_address(name, address):
                raise RuntimeError(f"TensorRT refused the address of {name}")
        self._execute(profile)
        if self.captures:
            # At the second call: TensorRT does what new shapes need in the first run with them, which was just now.
            profile.graphs[key] = self._captured(profile) if key in profile.graphs else None
            profile.graphs.move_to_end(key)
            if len(profile.graphs) > GRAPHS_MAX:
                _, oldest = profile.graphs.popitem(last=False)
                if oldest is not None:
                    self.stream.inner.synchronize()
                    oldest.close()

    def _execute(self, profile: Profile) -> None:
        if not profile.context.execute_async_v3(self.stream.handle):
            raise RuntimeError(f"TensorRT failed to run the {self.record.graph} engine; its log says why")

    def _captured(self, profile: Profile) -> CudaGraph | None:
        """None, from now on, where this engine cannot be captured: it runs as before."""
        try:
            return CudaGraph(
                self.stream.handle, lambda: bool(profile.context.execute_async_v3(self.stream.handle))
            )
        except (GraphError, OSError) as error:
            self.captures = False
            warnings.warn(
                f"The {self.record.graph} engine runs without CUDA graphs ({error}).",
                PixelrtWarning,
                stacklevel=2,
            )
            return None


class TrtBackend:
    """The engines of one bundle that were built for this GPU."""

    def __init__(
        self,
        bundle: Bundle,
        flavour: str = "auto",
        device: CudaDevice | None = None,
        unverified: bool = False,
    ) -> None:
        """flavour: `tensorrt`, `tensorrt-rtx` or `auto`. unverified: take engines that have no verdict, to verify them.
        Raises InputError: no GPU, no library, no fitting engines, none that were verified."""
        self.bundle = bundle
        self.library = open_library(flavour)
        self.device = device or CudaDevice()
        self.here = Here(
            self.library.flavour,
            self.library.version,
            self.library.cuda,
            self.device.architecture,
            source_hash(DEVICE),
        )
        self.engines: Engines = find_engines(bundle, self.here)
        # All are looked at before the first is deserialised, which takes seconds.
        self._plans = {graph: check(self.engines, graph, self.here, bundle) for graph in self.engines.records}
        if not unverified:
            check_verdict(self.engines, bundle, self.device.name)
        self.name = f"{self.library.title} on {self.device.name} ({self.device.architecture})"

    def open(self, graph: str) -> TrtEngine:
        """Raises InputError where there is no engine of it."""
        if graph not in self._plans:
            check(self.engines, graph, self.here, self.bundle)
        record = self.engines.records[graph]
        file = self.bundle.graph(record.source, activations=record.activations)
        return TrtEngine(self.library, self.device, file, record, self._plans[graph], stream=graph)


def deserialised(library: Library, plan: Path) -> Any:
    """The engine in a file. Raises InputError with TensorRT's own words where it refuses."""
    log = _log(library.module)
    runtime = library.module.Runtime(log)
    # Mapped, not read: on a Jetson the file's pages and the engine share one memory.
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        folder = plan.parent.parent.parent
        raise InputError(
            f"{library.title} cannot load {plan}: {log.last or 'it does not say why'}. "
            f"Run here: {build_command(folder, 'auto', library.flavour)}"
        )
    return engine


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the last error for our own sentence; says nothing by itself."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split())

    return Log()


def _x(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"
