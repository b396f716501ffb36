"""Which hardware and which software: what must be the same where two measurements are compared."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pixelrt.bench.files import Files
from pixelrt.bench.meter import PowerSensor
from pixelrt.bench.nvidia import NvmlPower, SmiPower, read_gpus
from pixelrt.bench.rails import RailPower, find_rails

PACKAGES = ("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def read_machine(files: Files) -> dict[str, Any]:
    """cpu, cores this process may use, memory_bytes, module (of a Jetson), gpus, kernel. No names of hosts or users."""
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", files.read("/proc/meminfo") or "", re.MULTILINE)
    model = files.read("/proc/device-tree/model")
    l4t = re.search(r"# R(\d+) .*REVISION: ([\d.]+)", files.read("/etc/nv_tegra_release") or "")
    return {
        "cpu": read_cpu(files) or model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": int(memory[1]) << 10 if memory else None,
        "module": model,
        "l4t": f"{l4t[1]}.{l4t[2]}" if l4t else None,
        "gpus": [{key: gpu[key] for key in ("name", "driver")} for gpu in read_gpus(files)],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def read_cpu(files: Files) -> str | None:
    """`model name` of an x86 processor; ARM's have none."""
    match = re.search(r"^model name\s*:\s*(.+)$", files.read("/proc/cpuinfo") or "", re.MULTILINE)
    return match[1].strip() if match else None


def read_versions() -> dict[str, str]:
    """Python and the packages that answer; those that are not installed are left out."""
    from pixelrt import __version__

    found = {"pixelrt": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def find_power(files: Files, on_gpu: bool) -> PowerSensor | None:
    """A Jetson's own monitors, which see all of it; elsewhere the GPU's, for bundles that run there."""
    rails = find_rails(files)
    if rails:
        return RailPower(files, rails)
    if not on_gpu:
        return None
    try:
        import pynvml
    except ModuleNotFoundError:
        pass
    else:
        try:
            return NvmlPower(pynvml)
        except pynvml.NVMLError:
            pass
    try:
        return SmiPower()
    except OSError:
        return None
