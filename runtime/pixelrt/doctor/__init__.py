"""`pixelrt doctor`: what a machine has, and what keeps pixelrt from running on it.

One file a noun, each with readers (`read_…`) and `examine(machine) -> Part`. All that is read comes through a
`Machine`, so that a recorded one (tests/runtime/machines) is examined like this one. Nothing is changed, nothing needs
root, and every program that is asked has SECONDS to answer.
"""

from __future__ import annotations

from pixelrt.doctor import compilers, cuda, gpu, jetson, kernels, onnx_runtime, packages, system, tensorrt
from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part

NOUNS = (system, jetson, gpu, cuda, tensorrt, onnx_runtime, compilers, kernels, packages)


def examine(machine: Machine) -> list[Part]:
    """What there is to say of each noun; of a Jetson only on one."""
    return [part for noun in NOUNS if (part := noun.examine(machine)) is not None]
