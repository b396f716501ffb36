"""Build the host library, and the GPU code where nvcc is at hand.

    python -m pixelrt_kernels.build [--host | --device] [--folder FOLDER] [--quiet]

CXX and NVCC name the compilers (default: the first of c++, g++, clang++; nvcc). Options are in host.flags and
device.flags. Files are written beside their place and renamed. Exit code 1: nothing could be built.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pixelrt_kernels.library import DEVICE, HERE, HOST, HostLibrary, file_name, find, folders, source_hash


def compiler(kind: str) -> str | None:
    """The program to call, or None."""
    named = os.environ.get("CXX" if kind == HOST else "NVCC")
    names = [named] if named else ["c++", "g++", "clang++"] if kind == HOST else ["nvcc"]
    return next((found for found in map(shutil.which, names) if found), None)


def command(kind: str, program: str, out: Path) -> list[str]:
    """What builds `out`, run in this folder."""
    if kind == HOST:
        return [
            program,
            "@host.flags",
            f'-DPIXELRT_SOURCE_HASH="{source_hash(HOST)}"',
            "host.cpp",
            "-o",
            str(out),
        ]
    return [program, *device_options(program), "device.cu", "-o", str(out)]


def device_options(program: str) -> list[str]:
    """device.flags without the GPUs that this nvcc does not know: that of JetPack 6 is older than some of them."""
    listed = subprocess.run(
        [program, "--list-gpu-arch"], capture_output=True, text=True, check=False
    ).stdout.split()
    options = (HERE / "device.flags").read_text(encoding="utf-8").split()
    return [
        option
        for option in options
        if not option.startswith("-gencode") or option.split("=")[2].split(",")[0] in listed
    ]


def ptx() -> bytes:
    """The GPU code as PTX for GPUs from sm_75 on, which a TensorRT plugin carries; compiled anew (seconds).

    Raises OSError: no nvcc, or one that fails.
    """
    program = compiler(DEVICE)
    if program is None:
        raise OSError("no nvcc found")
    kept = [option for option in device_options(program) if not option.startswith(("-gencode", "-fatbin"))]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "device.ptx"
        call = [program, *kept, "-ptx", "-arch=compute_75", "device.cu", "-o", str(out)]
        done = subprocess.run(call, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{program} failed:\n{done.stdout}{done.stderr}")
        return out.read_bytes()


def build(kind: str, folder: Path) -> Path:
    """Compile into `folder`. Raises OSError (a compiler that fails, a folder that cannot be written)."""
    program = compiler(kind)
    if program is None:
        raise OSError("no C++ compiler found" if kind == HOST else "no nvcc found")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / file_name(kind)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / place.name
        done = subprocess.run(
            command(kind, program, made), cwd=HERE, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"{program} failed:\n{done.stdout}{done.stderr}")
        if kind == HOST:
            HostLibrary(made)  # it loads, and says what it was made from
        made.replace(place)
    if folder == folders()[0]:  # of the sources before; the cache may serve several installations
        for other in folder.glob(place.name.rpartition("-")[0] + "-*"):
            if other != place:
                other.unlink()
    return place


def writable() -> Path:
    """The first of `folders()` that can be written."""
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise OSError(f"none of {', '.join(map(str, folders()))} can be written")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pixelrt_kernels.build", description=__doc__.split("\n")[0]
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--host", action="store_const", const=[HOST], dest="kinds", help="the host library alone"
    )
    only.add_argument(
        "--device", action="store_const", const=[DEVICE], dest="kinds", help="the GPU code alone"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: in the package, or the user's cache)"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing of what is up to date")
    asked = parser.parse_args(arguments)
    done = 0
    for kind in asked.kinds or [HOST, DEVICE]:
        there = find(kind) if asked.folder is None else None
        if there is not None:
            if not asked.quiet:
                print(f"{there}: up to date")
            done += 1
            continue
        began = time.monotonic()
        try:
            place = build(kind, asked.folder or writable())
        except OSError as error:
            print(f"{kind}: not built: {error}", file=sys.stderr)
            continue
        print(f"{place}: {place.stat().st_size:,} bytes, {time.monotonic() - began:.0f} s")
        done += 1
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
