"""Where engines will run: architecture, memory, and the precisions that make sense there.

Sources: NVIDIA's data sheets (memory), its CUDA GPU list (compute capability), TensorRT's support matrix (precisions).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pixelrt.errors import InputError
from pixelrt.gpu import Gpu
from pixelrt.tensorrt import Library

GIB = 1 << 30


@dataclass(frozen=True)
class Target:
    """memory: bytes, of the largest model of that name; None where it is not known. precisions: the first is the
    fastest that usually keeps the answers. shared: memory is the processor's too. what: for people."""

    name: str
    architecture: str
    memory: int | None
    precisions: tuple[str, ...]
    shared: bool = False
    what: str = ""


ORIN = ("int4", "int8", "fp16")
WIDE = ("fp16", "int8", "int4")  # enough memory and bandwidth for 16 bits
TARGETS = {
    target.name: target
    for target in (
        Target("orin-nano", "sm_87", 8 * GIB, ORIN, True, "Jetson Orin Nano"),
        Target("orin-nx", "sm_87", 16 * GIB, ORIN, True, "Jetson Orin NX"),
        Target("agx-orin", "sm_87", 64 * GIB, ORIN, True, "Jetson AGX Orin"),
        Target("thor", "sm_110", 128 * GIB, WIDE, True, "Jetson AGX Thor"),
        Target("a100", "sm_80", 80 * GIB, WIDE, what="A100"),
        Target("h100", "sm_90", 80 * GIB, WIDE, what="H100"),
        Target("h200", "sm_90", 141 * GIB, WIDE, what="H200"),
        Target("b200", "sm_100", 180 * GIB, WIDE, what="B200"),
        Target("rtx-ampere", "sm_86", 24 * GIB, ORIN, what="GeForce RTX 30, RTX A-series"),
        Target("rtx-ada", "sm_89", 24 * GIB, ORIN, what="GeForce RTX 40, RTX Ada, L4, L40"),
        Target("rtx-blackwell", "sm_120", 32 * GIB, ORIN, what="GeForce RTX 50, RTX PRO Blackwell"),
    )
}


def find_target(name: str, library: Library, gpu: Gpu | None) -> Target:
    """`auto` is the GPU here. Raises InputError where there is no such target, or `library` cannot build for it."""
    target = _named(name, library, gpu)
    able = library.architectures()
    if able is None:
        if gpu is None:
            raise InputError(
                f"{library.title} builds for the GPU it runs on, and none is found here. "
                f"Run this on the {target.what or target.architecture} itself{_ahead(target)}."
            )
        if gpu.architecture != target.architecture:
            raise InputError(
                f"{target.name} is {target.architecture}; this GPU ({gpu.name}) is {gpu.architecture}, and "
                f"{library.title} builds for the GPU it runs on. Build there, or use --target auto."
            )
    elif target.architecture not in able:
        raise InputError(
            f"{library.title} builds for {', '.join(able)}; {target.name} is {target.architecture}. "
            f"Build on the {target.what or 'device'} itself, with TensorRT."
        )
    return target


def _named(name: str, library: Library, gpu: Gpu | None) -> Target:
    if name == "auto":
        if gpu is None:
            names = _choices(library.architectures())
            raise InputError(f"No NVIDIA GPU is found here to build for. Name one: --target {names}.")
        return Target(gpu.architecture, gpu.architecture, gpu.memory, WIDE, gpu.shared, gpu.name)
    if name in TARGETS:
        return TARGETS[name]
    if re.fullmatch(r"sm_[1-9][0-9]{1,2}", name):
        return Target(name, name, None, WIDE)
    raise InputError(f"No target {name!r}. Choose one of: auto, {', '.join(TARGETS)}, sm_XX.")


def _choices(able: Sequence[str] | None) -> str:
    return " or ".join(t.name for t in TARGETS.values() if able is None or t.architecture in able)


def _ahead(target: Target) -> str:
    could = target.name.startswith("rtx-") or target.name == "a100"
    return ", or build ahead of time with --backend tensorrt-rtx" if could else ""
