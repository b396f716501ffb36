"""Operating system, Python, memory, disk."""

from __future__ import annotations

import re

from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem

OLDEST, NEWEST = (3, 10), (3, 13)
PROCESSORS = ("x86_64", "aarch64")  # what the packages have wheels for
LEAST_FREE = 1 << 30  # bytes; the small models need a third, with Python and ONNX Runtime
UNLIMITED = 1 << 60


def examine(machine: Machine) -> Part:
    name, (total, free) = system_name(machine), read_memory(machine)
    python = ".".join(map(str, machine.python))
    contained = in_container(machine)
    says = f"{name}{', in a container' if contained else ''}, {machine.processor}, Python {python}"
    says += f", {total / 1e9:.1f} GB of memory ({free / 1e9:.1f} free)" if total else ", memory not known"
    says += f", {machine.disk_free / 1e9:.0f} GB of disk free here"
    problems = []
    if not OLDEST <= machine.python[:2] <= NEWEST:
        problems.append(
            Problem(
                f"Python {python} is not one of 3.10 to 3.13.",
                "Make an environment with one of them.",
                "PIXELRT_PYTHON=python3.12 ./build_engines.sh",
                stops=True,
            )
        )
    if machine.processor not in PROCESSORS:
        problems.append(
            Problem(
                f"There are no packages of ONNX Runtime for {machine.processor} processors.",
                f"Use a machine with one of {' or '.join(PROCESSORS)}, and a 64-bit Python.",
                "uname -m",
                stops=True,
            )
        )
    if total and free < LEAST_FREE:
        problems.append(
            Problem(
                f"Only {free / 1e6:.0f} MB of memory are free; the small models need 300 MB, released ones gigabytes.",
                "Close what takes it.",
                "ps aux --sort=-rss | head",
            )
        )
    facts = {
        "system": name,
        "container": contained,
        "processor": machine.processor,
        "python": python,
        "memory_bytes": total or None,
        "memory_free_bytes": free if total else None,
        "disk_free_bytes": machine.disk_free,
    }
    return Part("system", says, facts, tuple(problems))


def system_name(machine: Machine) -> str:
    """PRETTY_NAME of os-release."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', machine.read("/etc/os-release") or "", re.MULTILINE)
    return match[1] if match else "an unknown system"


def in_container(machine: Machine) -> bool:
    return machine.has("/.dockerenv") or machine.has("/run/.containerenv")


def read_memory(machine: Machine) -> tuple[int, int]:
    """Bytes in all and free, of this container where it has a limit; (0, 0) where nothing says."""
    text = machine.read("/proc/meminfo") or ""
    found = {key: int(kib) << 10 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    limit, used = (
        (machine.read(f"/sys/fs/cgroup/memory.{name}") or "").strip() for name in ("max", "current")
    )
    if total and limit.isdigit() and used.isdigit() and int(limit) < total:
        return int(limit), min(free, max(0, int(limit) - int(used)))
    return total, free
