"""TensorRT in its flavours: the system's and pip's, full, lean, dispatch and RTX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixelrt.doctor import onnx_runtime
from pixelrt.doctor.debian import version_of
from pixelrt.doctor.gpu import read_gpus
from pixelrt.doctor.jetson import Jetson, read_jetson
from pixelrt.doctor.machine import PYTHON, Machine
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import release

# Import name -> what it is.
FLAVOURS = {
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
    "tensorrt_lean": "TensorRT lean runtime",
    "tensorrt_dispatch": "TensorRT dispatch runtime",
}
OLDEST, NEWER = (10, 3), (12,)
HEADERS = ("/usr/include/{}-linux-gnu/NvInferVersion.h", "/usr/include/NvInferVersion.h")


@dataclass(frozen=True)
class Flavour:
    """version: None where it cannot be imported; error then says why."""

    name: str
    version: str | None
    error: str = ""


def read_system(machine: Machine) -> str | None:
    """Version of the system's libnvinfer, by dpkg, else by its header."""
    packaged = version_of(machine, "libnvinfer10") or version_of(machine, "libnvinfer11")
    if packaged:
        return packaged.split("-")[0]
    for place in HEADERS:
        text = machine.read(place.format(machine.processor)) or ""
        found = [
            re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? (\d+)", text)
            for part in ("MAJOR", "MINOR", "PATCH", "BUILD")
        ]
        numbers = [match[1] for match in found if match]
        if numbers:
            return ".".join(numbers)
    return None


def read_flavours(machine: Machine) -> list[Flavour]:
    """Those of this Python. The system's may be there without a distribution that says so."""
    found = []
    for module, name in FLAVOURS.items():
        distribution = module.replace("_", "-")
        listed = any(
            known == distribution or known.startswith(f"{distribution}-cu") for known in machine.packages
        )
        if not listed and (module != "tensorrt" or read_system(machine) is None):
            continue
        ran = machine.run((PYTHON, "-c", f"import {module}; print({module}.__version__)"))
        printed = ran.out.split() if ran is not None and ran.code == 0 else []
        if printed:
            found.append(Flavour(name, printed[-1]))
        elif listed:
            lines = ran.err.strip().splitlines() if ran else []
            found.append(Flavour(name, None, lines[-1] if lines else "it does not answer"))
    return found


def examine(machine: Machine) -> Part:
    system, flavours, jetson = read_system(machine), read_flavours(machine), read_jetson(machine)
    words = [
        f"{f.name} {f.version}" if f.version else f"{f.name} cannot be imported ({f.error})" for f in flavours
    ]
    says = ", ".join(words) or "none for this Python"
    says += f"; the system's is {system}" if system else ""
    usable = [f for f in flavours if f.version]
    full = next((f.version for f in usable if f.name == FLAVOURS["tensorrt"]), None)
    problems = []
    if jetson is not None:
        problems += _on_jetson(machine, jetson, system, full)
    else:
        problems += [
            Problem(
                f"{f.name} is installed, but cannot be imported: {f.error}",
                "Install it again.",
                f"pip install --force-reinstall 'pixelrt[{'tensorrt-rtx' if 'RTX' in f.name else 'tensorrt'}]'",
            )
            for f in flavours
            if not f.version
        ]
        if read_gpus(machine) and not flavours and not onnx_runtime.uses_gpu(machine):
            problems.append(
                Problem(
                    "Nothing here runs graphs on the GPU: there is no TensorRT, and ONNX Runtime has no CUDA provider.",
                    "Install TensorRT.",
                    "pip install 'pixelrt[tensorrt]'",
                )
            )
    if full and not OLDEST <= release(full) < NEWER:
        problems.append(
            Problem(
                f"TensorRT {full} is not one of 10.3 to 11.",
                "Upgrade JetPack." if jetson else "Install one that is.",
                "sudo apt update && sudo apt install nvidia-jetpack"
                if jetson
                else "pip install 'pixelrt[tensorrt]'",
            )
        )
    facts = {"system": system, "python": {f.name: f.version for f in flavours}}
    return Part("tensorrt", says, facts, tuple(problems))


def _on_jetson(machine: Machine, jetson: Jetson, system: str | None, full: str | None) -> list[Problem]:
    """There the system's TensorRT is the only one that fits its driver."""
    if system is None:
        return [
            Problem(
                "JetPack's TensorRT is not installed.",
                "Install JetPack's packages.",
                "sudo apt update && sudo apt install nvidia-jetpack",
            )
        ]
    if full is None:
        wanted = {"6": (3, 10), "7": (3, 12)}.get((jetson.jetpack or "").split(".")[0])
        if wanted is not None and machine.python[:2] != wanted:
            python = ".".join(map(str, wanted))
            return [
                Problem(
                    f"JetPack's TensorRT {system} is for the system's Python {python}; this one is another.",
                    "Make the environment with the system's Python.",
                    f"rm -rf .venv && PIXELRT_PYTHON=/usr/bin/python{python} ./build_engines.sh",
                )
            ]
        return [
            Problem(
                f"This Python does not see JetPack's TensorRT {system}.",
                "Install its Python part, and make the environment with --system-site-packages, as the script does.",
                "sudo apt install python3-libnvinfer && rm -rf .venv && ./build_engines.sh",
            )
        ]
    if release(full)[:2] != release(system)[:2]:
        return [
            Problem(
                f"TensorRT {full} of pip hides JetPack's {system}, and does not fit this device's driver.",
                "Remove pip's.",
                "pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu12-bindings tensorrt-cu12-libs "
                "tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs",
            )
        ]
    return []
