"""A test double of PyCUDA's driver module and of the five functions of libcuda that make CUDA graphs.

Only what `pixelrt.cuda` and `pixelrt.cuda_graph` call is here, with PyCUDA 2026.1's names. Kernels run by emulation
(tests/kernels/emulation) where there is a C++ compiler.
"""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.doubles.machine import Clock, Fault, Machine, Pinned, Work


class Error(Exception):
    pass


class MemoryError_(Error):
    pass


def pycuda_double(machine: Machine, capability: tuple[int, int] = (8, 7), emulate: Any = None) -> ModuleType:
    """The module `pycuda.driver`. emulate: of `EmulatedDevice`, for kernels."""
    driver: Any = ModuleType("pycuda.driver")
    driver.Error, driver.MemoryError = Error, MemoryError_
    driver.init = lambda: None
    driver.event_flags = SimpleNamespace(DISABLE_TIMING=2)
    context = SimpleNamespace(push=machine.push, pop=machine.pop)

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return "a test double"

        def compute_capability(self) -> tuple[int, int]:
            return capability

        def retain_primary_context(self) -> Any:
            return context

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = machine.new_stream()

        def wait_for_event(self, event: Event) -> None:
            machine.wait_on(self.handle, event.recorded())

        def synchronize(self) -> None:
            machine.need_context()
            machine.wait(machine.record(self.handle))

    class Event:
        def __init__(self, flags: int = 0) -> None:
            machine.need_context()
            self.clock: Clock | None = None

        def record(self, stream: Stream) -> None:
            self.clock = machine.record(stream.handle)

        def recorded(self) -> Clock:
            if self.clock is None:
                raise Fault("an event that was never recorded is waited for")
            return self.clock

        def synchronize(self) -> None:
            machine.wait(self.recorded())

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self.address = machine.allocate(size)

        def __int__(self) -> int:
            return self.address

        def __del__(self) -> None:
            machine.free(self.address)

    class Memcpy2D:
        src_pitch = dst_pitch = width_in_bytes = height = 0

        def set_src_device(self, address: int) -> None:
            self.source = int(address)

        def set_dst_device(self, address: int) -> None:
            self.target = int(address)

        def __call__(self, stream: Stream) -> None:
            rows = range(self.height)
            pairs = [(self.source + r * self.src_pitch, self.target + r * self.dst_pitch) for r in rows]
            width = self.width_in_bytes

            def run() -> None:
                for source, target in pairs:
                    machine.view(target, width)[:] = machine.view(source, width)

            reads, writes = [(s, width) for s, _ in pairs], [(t, width) for _, t in pairs]
            machine.enqueue(stream.handle, Work("memcpy 2d", reads, writes, run))

    def memset_d8_async(address: int, value: int, size: int, stream: Stream) -> None:
        def run() -> None:
            machine.view(int(address), size)[:] = value

        machine.enqueue(stream.handle, Work("memset", [], [(int(address), size)], run))

    def memcpy_htod_async(address: int, source: Any, stream: Stream) -> None:
        """Pinned memory is read when the copy is carried out; other memory before the call returns."""
        data = source.data if isinstance(source, Pinned) else np.array(source)
        assert data.flags.c_contiguous

        def run() -> None:
            machine.view(int(address), data.nbytes)[:] = data.reshape(-1).view(np.uint8)

        at = machine.enqueue(stream.handle, Work("copy to GPU", [], [(int(address), data.nbytes)], run))
        if isinstance(source, Pinned):
            source.copied(False, at)

    def memcpy_dtoh_async(target: Any, address: int, stream: Stream) -> None:
        if not isinstance(target, Pinned):
            raise Fault("an asynchronous copy to memory that is not pinned")
        data = target.data
        data[...] = 0xFF

        def run() -> None:
            data.reshape(-1).view(np.uint8)[:] = machine.view(int(address), data.nbytes)

        target.copied(
            True, machine.enqueue(stream.handle, Work("copy to host", [(int(address), data.nbytes)], [], run))
        )

    def memcpy_dtod_async(target: int, source: int, size: int, stream: Stream) -> None:
        def run() -> None:
            machine.view(int(target), size)[:] = machine.view(int(source), size)

        machine.enqueue(stream.handle, Work("copy on GPU", [(int(source), size)], [(int(target), size)], run))

    def get_function(name: str) -> Any:
        def launch(*arguments: Any, grid: Any, block: Any, shared: int, stream: Stream) -> None:
            # Sizes are not known here: each buffer to its end counts as written.
            pointers = [int(a) for a in arguments if isinstance(a, np.uintp)]

            def run() -> None:
                values = [
                    np.array([machine.view(*machine.rest(int(a))).ctypes.data], np.uint64)
                    if isinstance(a, np.uintp)
                    else np.array([a])
                    for a in arguments
                ]
                held = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
                assert not emulate(name.encode(), (ctypes.c_uint * 6)(*grid, *block), shared, 0, held), name

            machine.enqueue(stream.handle, Work(name, [], [machine.rest(p) for p in pointers], run))

        return launch

    driver.Device, driver.Stream, driver.Event, driver.Memcpy2D = Device, Stream, Event, Memcpy2D
    driver.mem_alloc = DeviceAllocation
    driver.pagelocked_empty = lambda size, of: Pinned(machine, np.full(size, 0xFF, of))
    driver.memset_d8_async, driver.memcpy_dtod_async = memset_d8_async, memcpy_dtod_async
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    driver.module_from_file = lambda path: SimpleNamespace(get_function=get_function)
    return driver


class LibCuda:
    """`launched` counts graphs; `refuses` makes every capture fail, as an engine that cannot be captured does."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.launched, self.refuses = machine, 0, False
        self._made: dict[int, list[Work]] = {}

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        self.machine.begin_capture(stream.value)
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        work = self.machine.end_capture(stream.value)
        if self.refuses:
            return 901
        graph._obj.value = self._keep(work)
        return 0

    def cuGraphInstantiateWithFlags(self, runnable: Any, graph: Any, flags: Any) -> int:
        runnable._obj.value = self._keep(self._made[graph.value])
        return 0

    def cuGraphLaunch(self, runnable: Any, stream: Any) -> int:
        self.launched += 1
        for work in self._made[runnable.value]:
            self.machine.enqueue(stream.value, work)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        del self._made[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    @property
    def alive(self) -> int:
        return len(self._made)

    def _keep(self, work: list[Work]) -> int:
        self._count = getattr(self, "_count", 0) + 1
        self._made[self._count] = work
        return self._count
