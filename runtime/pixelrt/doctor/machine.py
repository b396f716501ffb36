"""The machine that is examined: its files, what its programs answer, its Python."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

SECONDS = 15  # nvidia-smi may take some where nothing keeps the driver loaded
PYTHON = "python"  # first word of a command that this Python is to run
TEXT_MAX = 32 << 20  # bytes; dpkg's status file has some


@dataclass(frozen=True)
class Ran:
    """code: None where a program did not end in time."""

    code: int | None
    out: str = ""
    err: str = ""


@dataclass(frozen=True)
class Machine:
    """root: where its files lie. run: a command, None where there is no such program.

    packages: Python distributions that can be imported, name -> version. requires: what pixelrt's own metadata names,
    empty where it runs from its source. library: what is wrong with the kernels' host library, None for nothing.
    """

    root: Path
    processor: str
    python: tuple[int, ...]
    packages: Mapping[str, str]
    requires: Sequence[str]
    library: str | None
    disk_free: int
    run: Callable[[tuple[str, ...]], Ran | None]

    def read(self, path: str) -> str | None:
        """Text of a file below the root; None where it cannot be read."""
        try:
            with (self.root / path.lstrip("/")).open("rb") as stream:
                return stream.read(TEXT_MAX).decode("utf-8", "replace")
        except OSError:
            return None

    def has(self, path: str) -> bool:
        try:
            return (self.root / path.lstrip("/")).exists()
        except OSError:
            return False

    def paths(self, pattern: str) -> list[str]:
        """Paths below the root that fit a pattern."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return ["/" + path.relative_to(self.root).as_posix() for path in found]


def this_machine() -> Machine:
    return Machine(
        root=Path("/"),
        processor=platform.machine(),
        python=tuple(sys.version_info[:3]),
        packages=_packages(),
        requires=_requires(),
        library=_library(),
        disk_free=shutil.disk_usage(".").free,
        run=cache(_run),
    )


def plain_name(distribution: str) -> str:
    """As the index compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in distributions():  # in the order of sys.path: the first of a name is imported
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(plain_name(name), distribution.version)
    return found


def _requires() -> list[str]:
    try:
        return requires("pixelrt") or []
    except PackageNotFoundError:
        return []


def _library() -> str | None:
    from pixelrt_kernels.library import HOST, HostLibrary, find

    path = find(HOST)
    if path is None:
        return "is not built"
    try:
        HostLibrary(path)
    except OSError as error:
        return f"cannot be used ({error})"
    return None


def _run(command: tuple[str, ...]) -> Ran | None:
    program = sys.executable if command[0] == PYTHON else shutil.which(command[0])
    if not program:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Ran(None)
    except OSError:
        return None
    return Ran(done.returncode, done.stdout, done.stderr)
