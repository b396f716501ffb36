"""C++ compilers, which build the kernels' host library. (nvcc is the CUDA toolkit's.)"""

from __future__ import annotations

from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem

PROGRAMS = ("c++", "g++", "clang++")  # in the order in which pixelrt_kernels.build looks


def read_compilers(machine: Machine) -> dict[str, str]:
    """Program -> the first line of its --version."""
    found = {}
    for program in PROGRAMS:
        ran = machine.run((program, "--version"))
        if ran is not None and ran.code == 0 and ran.out.strip():
            found[program] = ran.out.strip().splitlines()[0]
    return found


def examine(machine: Machine) -> Part:
    found = read_compilers(machine)
    problems = []
    if not found and machine.library is not None:
        problems.append(
            Problem(
                "There is no C++ compiler to build the kernels' host library with.",
                "Install one.",
                "sudo apt install g++",
            )
        )
    says = next(iter(found.values()), "no C++ compiler")
    return Part("compilers", says, {"c++": found}, tuple(problems))
