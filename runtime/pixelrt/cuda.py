"""An NVIDIA GPU through PyCUDA: its context, streams, memory, and our kernels on it.

    with CudaDevice() as gpu:                           # its primary context is current on this thread
        kernels = gpu.kernels(gpu.stream("masks"))      # `pixelrt_kernels.device.Device`

The kernels are machine code for the GPUs of device.flags and PTX for later ones, in one fat binary that
`python -m pixelrt_kernels.build` writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
import pycuda.driver as driver
from numpy.typing import DTypeLike, NDArray
from pixelrt_kernels.device import Grid
from pixelrt_kernels.library import BUILD_COMMAND, DEVICE, find

from pixelrt.cuda_masks import MaskOperators
from pixelrt.device_array import Block, DeviceArray, Pool
from pixelrt.errors import InputError

NON_BLOCKING = 1  # cuda.h, CU_STREAM_NON_BLOCKING: no waiting for the default stream, which nothing here uses
STAGING_BYTES = 8 << 20  # pinned, for copies to the host; larger arrays take several turns


class Stream:
    """A queue of work on a GPU."""

    def __init__(self) -> None:
        self.inner = driver.Stream(NON_BLOCKING)
        self.handle = int(self.inner.handle)

    def after(self, blocks: Iterable[Block]) -> None:
        """What comes now waits, on the GPU, for all that other streams have to do with these blocks."""
        for event in {event for b in blocks for other, event in list(b.used.items()) if other != self.handle}:
            self.inner.wait_for_event(event)

    def mark(self, blocks: Iterable[Block]) -> Any:
        """The event after all that was given so far, which is the last work with these blocks."""
        event = driver.Event(driver.event_flags.DISABLE_TIMING)
        event.record(self.inner)
        for block in blocks:
            block.used[self.handle] = event
        return event


class CudaDevice:
    """One GPU. Inside of `with` its primary context is current on this thread; `with` may be nested.

    Every call of the driver is checked by PyCUDA, which raises `pycuda.driver.Error`.
    """

    def __init__(self, index: int = 0) -> None:
        """Raises InputError: no such GPU, or none that the driver opens."""
        try:
            driver.init()
        except driver.Error as error:
            raise InputError(f"The NVIDIA driver opens no GPU ({error}). Run: nvidia-smi") from None
        if index >= driver.Device.count():
            raise InputError(f"No GPU {index}: this machine has {driver.Device.count()}.")
        device = driver.Device(index)
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self._context = device.retain_primary_context()
        self.pool = Pool(driver.mem_alloc, driver.MemoryError)
        self.mask_operators = MaskOperators(self)
        self._streams: dict[str, Stream] = {}
        self._functions: dict[str, Any] = {}
        self._module: Any = None
        self._staging: NDArray[np.uint8] | None = None
        self._staged = threading.Lock()

    @property
    def architecture(self) -> str:
        return "sm_{}{}".format(*self.capability)

    def __enter__(self) -> CudaDevice:
        self._context.push()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.pop()

    def stream(self, name: str) -> Stream:
        """The stream of this name, made when first asked for."""
        if name not in self._streams:
            self._streams[name] = Stream()
        return self._streams[name]

    def kernels(self, stream: Stream | None = None) -> Kernels:
        """Raises InputError where they were not built."""
        return Kernels(self, stream or self.stream("kernels"))

    def function(self, kernel: str) -> Any:
        """A kernel of the fat binary. Raises InputError where it was not built."""
        if self._module is None:
            binary = find(DEVICE)
            if binary is None:
                raise InputError(
                    f"The GPU code of the kernels is not built. With nvcc at hand, run: {BUILD_COMMAND}"
                )
            self._module = driver.module_from_file(str(binary))
        if kernel not in self._functions:
            self._functions[kernel] = self._module.get_function(kernel)
        return self._functions[kernel]

    # ---- memory ---------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], of: DTypeLike) -> DeviceArray:
        """Content unspecified. Whoever writes it calls `Stream.after` before and `Stream.mark` after."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(of).itemsize
        return DeviceArray(self, self.pool.take(size), shape, of)

    def zeros(self, shape: tuple[int, ...], of: DTypeLike, stream: Stream) -> DeviceArray:
        array = self.empty(shape, of)
        stream.after([array.block])
        if array.nbytes:
            driver.memset_d8_async(array.address, 0, array.nbytes, stream.inner)
        stream.mark([array.block])
        return array

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Host memory that copies to and from the GPU run past the host with."""
        memory: NDArray[np.uint8] = driver.pagelocked_empty(max(1, size), np.uint8)
        return memory

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Start a copy to an address. source: pinned or not, contiguous; it must stay as it is until it is copied."""
        if source.nbytes:
            driver.memcpy_htod_async(target, source, stream.inner)

    def copy(self, target: int, source: DeviceArray, stream: Stream) -> None:
        """Start a copy to an address on the GPU."""
        stream.after([source.block])
        if source.nbytes:
            driver.memcpy_dtod_async(target, source.address, source.nbytes, stream.inner)

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """A copy on the host, made on a stream of its own: nothing but the numbers themselves is waited for."""
        out = np.empty(array.shape, array.dtype)
        flat = out.reshape(-1).view(np.uint8)
        with self._staged, self:
            stream = self.stream("downloads")
            if self._staging is None:
                self._staging = self.pinned(STAGING_BYTES)
            stream.after([array.block])
            for start in range(0, len(flat), STAGING_BYTES):
                part = self._staging[: min(STAGING_BYTES, len(flat) - start)]
                driver.memcpy_dtoh_async(part, array.address + start, stream.inner)
                stream.mark([array.block]).synchronize()
                flat[start : start + len(part)] = part
        return out

    def gathered(self, array: DeviceArray, items: NDArray[np.intp]) -> DeviceArray:
        """array[items] along the first axis, copied on the GPU."""
        with self:
            stream = self.stream("kernels")
            out = self.empty((len(items), *array.shape[1:]), array.dtype)
            stream.after([out.block])
            for place, item in enumerate(items):
                self.copy(out[place].address, array[int(item)], stream)
            stream.mark([out.block, array.block])
        return out

    def sliced(self, array: DeviceArray, axis: int, start: int, stop: int) -> DeviceArray:
        """array[..., start:stop, ...] of one axis, copied on the GPU."""
        shape = (*array.shape[:axis], stop - start, *array.shape[axis + 1 :])
        width = int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) * array.dtype.itemsize
        with self:
            stream = self.stream("kernels")
            out = self.empty(shape, array.dtype)
            stream.after([out.block, array.block])
            if out.nbytes:
                rows = driver.Memcpy2D()
                rows.set_src_device(array.address + start * width)
                rows.set_dst_device(out.address)
                rows.src_pitch, rows.dst_pitch = array.shape[axis] * width, (stop - start) * width
                rows.width_in_bytes, rows.height = (stop - start) * width, int(np.prod(shape[:axis]))
                rows(stream.inner)
            stream.mark([out.block, array.block])
        return out


class Kernels:
    """Our kernels on one stream; `pixelrt_kernels.device.Device`. Use it inside of `with` its GPU."""

    def __init__(self, device: CudaDevice, stream: Stream) -> None:
        device.function("pixelrt_upsample_mask")
        self.device, self.stream = device, stream
        self.name, self.capability = device.name, device.capability

    def upload(self, array: NDArray[Any] | DeviceArray) -> DeviceArray:
        if isinstance(array, DeviceArray):
            return array
        held = self.allocate(array.nbytes)
        self.stream.after([held.block])
        self.device.upload(held.address, array, self.stream)
        self.stream.mark([held.block]).synchronize()  # the array is the caller's, who may change it
        return held

    def allocate(self, size: int) -> DeviceArray:
        return self.device.empty((max(1, size),), np.uint8)

    def download(self, buffer: DeviceArray, shape: tuple[int, ...], of: DTypeLike) -> NDArray[Any]:
        return self.device.download(DeviceArray(self.device, buffer.block, shape, of, buffer.offset))

    def launch(self, kernel: str, grid: Grid, block: Grid, shared: int, *arguments: Any) -> None:
        blocks = [argument.block for argument in arguments if isinstance(argument, DeviceArray)]
        self.stream.after(blocks)
        values = [np.uintp(a.address) if isinstance(a, DeviceArray) else a for a in arguments]
        self.device.function(kernel)(*values, grid=grid, block=block, shared=shared, stream=self.stream.inner)
        self.stream.mark(blocks)
