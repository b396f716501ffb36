"""The built files beside this one: the host library (loaded here) and the GPU code. Each knows its sources.

A built file's name ends in a hash of the sources it was made from, and the host library also carries it inside: what
was built from other sources is never used. Without a library the operators run in numpy, and one warning says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # building needs no numpy
    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
HOST, DEVICE = "host", "device"
SOURCES = {
    HOST: ("host.cpp", "level.inc", "half.h", "host.flags", "*/kernel.cuh", "*/*.h"),
    DEVICE: ("device.cu", "device.flags", "*/*.cuh"),
}
BUILD_COMMAND = "python -m pixelrt_kernels.build"


def source_hash(kind: str) -> str:
    """64 hexadecimal digits over names and bytes of all sources of HOST or DEVICE. CMakeLists.txt computes the same."""
    files = {
        path.relative_to(HERE).as_posix(): path for pattern in SOURCES[kind] for path in HERE.glob(pattern)
    }
    lines = (f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_name(kind: str) -> str:
    stem = source_hash(kind)[:16]
    return f"host-{platform.machine()}-{stem}.so" if kind == HOST else f"device-{stem}.fatbin"


def folders() -> list[Path]:
    """Where a built file may lie: in the package, or, where that cannot be written, in the user's cache."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [HERE / "built", cached / "pixelrt"]


def find(kind: str) -> Path | None:
    """The built file that belongs to these sources."""
    name = file_name(kind)
    return next((folder / name for folder in folders() if (folder / name).is_file()), None)


class HostLibrary:
    """The loaded library. Calls with arrays are in each operator's host.py."""

    def __init__(self, path: Path) -> None:
        """Raises OSError: it cannot be loaded, or was built from other sources."""
        self.path = path
        self.c = ctypes.CDLL(str(path))
        try:
            self.c.pixelrt_source_hash.restype = ctypes.c_char_p
            found: bytes = self.c.pixelrt_source_hash()
        except AttributeError as error:
            raise OSError(f"{path} is not pixelrt's host library") from error
        if found.decode() != source_hash(HOST):
            raise OSError(f"{path} was built from other sources than those beside this program")
        self.levels = range(self.c.pixelrt_best_level() + 1)  # instruction sets, the best last
        self.threads = len(os.sched_getaffinity(0))

    def call(self, name: str, *arguments: NDArray[Any] | int | None) -> None:
        """Call `pixelrt_NAME` with contiguous arrays (or None) and whole numbers. Raises MemoryError."""
        if getattr(self.c, f"pixelrt_{name}")(*map(_c_value, arguments)):
            raise MemoryError(f"the host library ran out of memory in {name}")


def _c_value(value: NDArray[Any] | int | None) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if value is None:
        return ctypes.c_void_p(None)
    assert value.flags.c_contiguous
    return ctypes.c_void_p(value.ctypes.data)


@cache
def host_library() -> HostLibrary | None:
    """The library to use; None, with one warning, where it is not built or cannot be used."""
    path = find(HOST)
    try:
        if path is not None:
            return HostLibrary(path)
        reason = "is not built"
    except OSError as error:
        reason = f"cannot be used: {error}"
    warnings.warn(
        f"pixelrt's host library {reason}; masks are made by numpy, which is slower. To build it: {BUILD_COMMAND}",
        RuntimeWarning,
        stacklevel=3,
    )
    return None
