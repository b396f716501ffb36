"""The CUDA toolkit: where engines and kernels are built."""

from __future__ import annotations

import json
import re

from pixelrt.doctor.gpu import DRIVERS, read_driver, read_gpus
from pixelrt.doctor.jetson import read_jetson
from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import release

FOLDER = "/usr/local/cuda"


def read_toolkit(machine: Machine) -> str | None:
    """Version by the toolkit's own version.json, else by nvcc."""
    try:
        version = json.loads(machine.read(f"{FOLDER}/version.json") or "")["cuda"]["version"]
    except (ValueError, LookupError, TypeError):
        version = read_nvcc(machine)
    return str(version) if version else None


def read_nvcc(machine: Machine) -> str | None:
    """Version of the nvcc on PATH."""
    ran = machine.run(("nvcc", "--version"))
    match = re.search(r"release [\d.]+, V([\d.]+)", ran.out) if ran and ran.code == 0 else None
    return match[1] if match else None


def examine(machine: Machine) -> Part:
    toolkit, nvcc = read_toolkit(machine), read_nvcc(machine)
    gpus, driver = read_gpus(machine), read_driver(machine)
    says = f"toolkit {toolkit}" if toolkit else "no toolkit"
    says += ", nvcc on PATH" if nvcc else ", no nvcc on PATH"
    problems = []
    if gpus and not nvcc and machine.has(f"{FOLDER}/bin/nvcc"):
        problems.append(
            Problem(
                f"nvcc is in {FOLDER}/bin, which is not on PATH, so the kernels for GPUs cannot be built.",
                "Add the folder to PATH.",
                f"echo 'export PATH={FOLDER}/bin:$PATH' >> ~/.bashrc && source ~/.bashrc",
            )
        )
    major = release(toolkit)[0] if toolkit and release(toolkit) else 0
    needed = DRIVERS.get(major)
    # Jetson's drivers belong to their JetPack and are numbered otherwise.
    if gpus and driver and needed and release(driver) < release(needed) and read_jetson(machine) is None:
        problems.append(
            Problem(
                f"CUDA {toolkit} needs driver {needed} or newer; {driver} is loaded.",
                "Install a newer driver, then restart.",
                "sudo ubuntu-drivers install && sudo reboot",
            )
        )
    return Part("cuda", says, {"toolkit": toolkit, "nvcc": nvcc}, tuple(problems))
