"""NVIDIA GPUs and their driver."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from pixelrt.doctor.jetson import read_jetson
from pixelrt.doctor.machine import Machine, Ran
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import release
from pixelrt.doctor.system import in_container

FIELDS = "name,compute_cap,memory.total,memory.used,driver_version"
QUERY = ("nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits")
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor; class of display and 3D controllers
# CUDA's major version -> the oldest driver that runs it (CUDA Compatibility guide, minor version compatibility)
DRIVERS = {12: "525.60.13", 13: "580.65.06"}


@dataclass(frozen=True)
class Gpu:
    """capability: 8.7. Memory in MiB; None on a Jetson, whose memory is the system's, or where it is not said."""

    name: str
    capability: str | None
    memory_mib: int | None = None
    used_mib: int | None = None

    @property
    def architecture(self) -> str | None:
        return f"sm_{self.capability.replace('.', '')}" if self.capability else None


def read_gpus(machine: Machine) -> list[Gpu]:
    """What nvidia-smi lists; on a Jetson where it lists nothing, its chip."""
    ran, jetson = machine.run(QUERY), read_jetson(machine)
    rows = [line.split(", ") for line in ran.out.splitlines()] if ran and ran.code == 0 else []
    found = []
    for row in rows:
        if len(row) == len(FIELDS.split(",")):
            capability = row[1] if re.fullmatch(r"\d+\.\d+", row[1]) else None
            found.append(Gpu(row[0], capability, _mib(row[2]), _mib(row[3])))
    if jetson is not None and jetson.chip is not None:
        name = found[0].name if found else jetson.chip
        return [Gpu(name, (found[0].capability if found else None) or jetson.capability)]
    return found


def read_driver(machine: Machine) -> str | None:
    """Version of the loaded kernel module."""
    text = machine.read("/proc/driver/nvidia/version") or ""
    match = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return match[1] if match else None


def pci_cards(machine: Machine) -> int:
    """NVIDIA's display and 3D controllers on the bus."""
    vendors = machine.paths("/sys/bus/pci/devices/*/vendor")
    nvidia = [path for path in vendors if (machine.read(path) or "").strip() == NVIDIA]
    kinds = [machine.read(path.removesuffix("vendor") + "class") or "" for path in nvidia]
    return sum(kind.startswith(DISPLAY) for kind in kinds)


def examine(machine: Machine) -> Part:
    gpus, driver, cards = read_gpus(machine), read_driver(machine), pci_cards(machine)
    problems = []
    if not gpus and (cards or driver):
        problems.append(_unreachable(machine, driver, cards))
    for gpu in gpus:
        if gpu.memory_mib and gpu.used_mib and gpu.used_mib > 0.9 * gpu.memory_mib:
            problems.append(
                Problem(
                    f"{gpu.used_mib:,} of {gpu.memory_mib:,} MiB of {gpu.name} are taken.",
                    "End what takes it.",
                    "nvidia-smi",
                )
            )
    if gpus and driver and release(driver) < release(DRIVERS[12]) and read_jetson(machine) is None:
        problems.append(
            Problem(
                f"Driver {driver} is older than {DRIVERS[12]}, which CUDA 12 needs.",
                "Install a newer one, then restart.",
                "sudo ubuntu-drivers install && sudo reboot",
            )
        )
    facts = {
        "gpus": [{**asdict(gpu), "architecture": gpu.architecture} for gpu in gpus],
        "driver": driver,
        "cards_on_the_bus": cards,
    }
    return Part("gpu", _says(gpus, driver), facts, tuple(problems))


def _says(gpus: list[Gpu], driver: str | None) -> str:
    if not gpus:
        return "none"
    words = []
    for gpu in gpus:
        memory = f", {gpu.memory_mib / 1024:.0f} GiB" if gpu.memory_mib else ""
        words.append(f"{gpu.name} ({gpu.architecture or 'compute capability not known'}{memory})")
    if len(words) > 1 and len(set(words)) == 1:
        words = [f"{len(words)} x {words[0]}"]
    return f"{', '.join(words)}, driver {driver or 'not known'}"


def _unreachable(machine: Machine, driver: str | None, cards: int) -> Problem:
    ran = machine.run(QUERY)
    if driver is None:
        what = "There is an NVIDIA GPU on the bus, and no driver for it is loaded."
        return Problem(
            what, "Install the driver, then restart.", "sudo ubuntu-drivers install && sudo reboot"
        )
    if ran is None and in_container(machine):
        what = "The host has an NVIDIA GPU; this container was started without it."
        return Problem(
            what, "Start it with the GPU (on a Jetson: --runtime nvidia).", "docker run --gpus all …"
        )
    if ran is not None and "mismatch" in ran.out + ran.err:
        what = f"The loaded driver {driver} and its libraries are of different versions."
        return Problem(what, "Restart, so that the new driver is loaded.", "sudo reboot")
    return Problem(
        f"Driver {driver} is loaded, but {_complaint(ran)}.",
        "Ask it what is wrong; a new installation of the driver and a restart mend most of it.",
        "nvidia-smi",
    )


def _complaint(ran: Ran | None) -> str:
    if ran is None:
        return "there is no nvidia-smi"
    if ran.code is None:
        return "nvidia-smi does not answer"
    words = (ran.out + ran.err).strip().splitlines()
    return f"nvidia-smi says: {words[0].rstrip('.')}" if words else "nvidia-smi lists no GPU"


def _mib(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
