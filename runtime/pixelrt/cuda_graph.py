"""CUDA graphs: work of a stream, noted once and started again with one call.

PyCUDA (2026.1) does not wrap them, so five functions of the driver are called by ctypes. What is captured keeps the
shapes and addresses that it was captured with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

THREAD_LOCAL = 1  # cuda.h, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
LIBRARY = "libcuda.so.1"


def libcuda() -> Any:
    return ctypes.CDLL(LIBRARY)


class GraphError(RuntimeError):
    """The driver refused; the stream is usable again."""


class CudaGraph:
    """Captured work. `launch` may be called any number of times."""

    def __init__(self, stream: int, work: Callable[[], bool]) -> None:
        """Note what `work` gives to the stream, which is not executed. work: False where it failed.

        stream: handle, not the default stream's. Raises GraphError. The context must be current, here and later.
        """
        self._driver = libcuda()
        graph, self._runnable = ctypes.c_void_p(), ctypes.c_void_p()
        handle = ctypes.c_void_p(stream)
        self._call("cuStreamBeginCapture_v2", handle, THREAD_LOCAL)
        done = False
        try:
            done = work()
        finally:  # a stream that still captures would refuse everything
            ended = self._driver.cuStreamEndCapture(handle, ctypes.byref(graph))
        with self._freed("cuGraphDestroy", graph):
            if not done or ended or not graph:
                raise GraphError(f"capturing failed (CUDA error {ended})")
            self._call(
                "cuGraphInstantiateWithFlags", ctypes.byref(self._runnable), graph, ctypes.c_ulonglong(0)
            )

    def launch(self, stream: int) -> None:
        """Raises GraphError."""
        self._call("cuGraphLaunch", self._runnable, ctypes.c_void_p(stream))

    def close(self) -> None:
        """Free it; no launch may be under way."""
        if self._runnable:
            self._driver.cuGraphExecDestroy(self._runnable)
            self._runnable = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._driver, name)(*arguments)
        if error:
            raise GraphError(f"{name} failed (CUDA error {error})")

    @contextmanager
    def _freed(self, destroy: str, what: ctypes.c_void_p) -> Iterator[None]:
        try:
            yield
        finally:
            if what:
                getattr(self._driver, destroy)(what)
