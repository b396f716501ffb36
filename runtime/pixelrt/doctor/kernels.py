"""The kernels' host library: without it masks are made by numpy."""

from __future__ import annotations

from pixelrt_kernels.library import BUILD_COMMAND

from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem


def examine(machine: Machine) -> Part:
    facts = {"host_library": machine.library is None}
    if machine.library is None:
        return Part("kernels", "host library built", facts)
    problem = Problem(
        f"The kernels' host library {machine.library}; masks are made by numpy, which is slower.",
        "Build it; that takes a C++ compiler and about 20 seconds.",
        f"{BUILD_COMMAND} --host",
    )
    return Part("kernels", f"host library {machine.library}", facts, (problem,))
