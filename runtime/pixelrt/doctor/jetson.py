"""Module, L4T and JetPack, power mode of a Jetson. All from files; `nvpmodel` is not run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixelrt.doctor.debian import version_of
from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import release

# Device-tree name of the chip -> (what NVIDIA calls it, compute capability)
CHIPS = {"nvidia,tegra234": ("Orin", "8.7"), "nvidia,tegra264": ("Thor", "11.0")}
# L4T -> JetPack, for where the package nvidia-jetpack does not say; a longer name wins.
JETPACKS = {
    "35": "5",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
OLDEST_L4T = (36,)
FULL = "MAXN"  # how the mode without limits is called: MAXN, MAXN_SUPER


@dataclass(frozen=True)
class Jetson:
    """power_modes: id -> name. power_mode: id of the current one."""

    module: str
    chip: str | None
    capability: str | None
    l4t: str | None
    jetpack: str | None
    power_mode: int | None
    power_modes: dict[int, str]


def read_jetson(machine: Machine) -> Jetson | None:
    """None where the device tree names no Jetson."""
    model = (machine.read("/proc/device-tree/model") or "").strip("\0\n ")
    compatible = (machine.read("/proc/device-tree/compatible") or "").split("\0")
    chip, capability = next((CHIPS[name] for name in compatible if name in CHIPS), (None, None))
    if chip is None and not any(name.startswith("nvidia,tegra") for name in compatible):
        return None
    match = re.search(
        r"# R(\d+) \(release\), REVISION: ([\d.]+)", machine.read("/etc/nv_tegra_release") or ""
    )
    l4t = f"{match[1]}.{match[2]}" if match else None
    packaged = version_of(machine, "nvidia-jetpack")
    jetpack = re.split(r"[+-]", packaged)[0] if packaged else jetpack_of(l4t)
    mode, modes = read_power_mode(machine)
    return Jetson(model or "a Jetson", chip, capability, l4t, jetpack, mode, modes)


def jetpack_of(l4t: str | None) -> str | None:
    begins = [known for known in JETPACKS if l4t is not None and f"{l4t}.".startswith(f"{known}.")]
    return JETPACKS[max(begins, key=len)] if begins else None


def read_power_mode(machine: Machine) -> tuple[int | None, dict[int, str]]:
    """nvpmodel's own files: the current id, and the name of each."""
    current = re.search(r"pmode:(\d+)", machine.read("/var/lib/nvpmodel/status") or "")
    modes: dict[int, str] = {}
    conf = machine.read("/etc/nvpmodel.conf") or ""
    for line in re.findall(r"^<\s*POWER_MODEL\s([^>]*)>", conf, re.MULTILINE):
        pairs = dict(re.findall(r"(\w+)=(\S+)", line))
        if pairs.get("ID", "").isdigit() and "NAME" in pairs:
            modes[int(pairs["ID"])] = pairs["NAME"]
    default = re.search(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)", conf, re.MULTILINE)
    found = current or default
    return (int(found[1]) if found else None), modes


def examine(machine: Machine) -> Part | None:
    found = read_jetson(machine)
    if found is None:
        return None
    name = None if found.power_mode is None else found.power_modes.get(found.power_mode)
    jetpack = f"JetPack {found.jetpack}" if found.jetpack else "JetPack not known"
    mode = "power mode not known" if found.power_mode is None else f"power mode {name or found.power_mode}"
    says = f"{found.module}, L4T {found.l4t or 'not known'} ({jetpack}), {mode}"
    problems = []
    if found.l4t and release(found.l4t) < OLDEST_L4T:
        problems.append(
            Problem(
                f"L4T {found.l4t} is older than JetPack 6, whose TensorRT 10.3 is the oldest that is supported.",
                "Flash JetPack 6.2 or later; NVIDIA's page says how for each module.",
                "xdg-open https://developer.nvidia.com/embedded/jetpack",
            )
        )
    fullest = [number for number, mode_name in found.power_modes.items() if mode_name.startswith(FULL)]
    if fullest and found.power_mode is not None and found.power_mode not in fullest:
        problems.append(
            Problem(
                f"Power mode {name or found.power_mode} holds the clocks down.",
                f"Choose {found.power_modes[fullest[0]]} where power supply and cooling allow it; "
                "some modes need a restart.",
                f"sudo nvpmodel -m {fullest[0]}",
            )
        )
    facts = {
        "module": found.module,
        "chip": found.chip,
        "l4t": found.l4t,
        "jetpack": found.jetpack,
        "power_mode": name or found.power_mode,
        "power_modes": found.power_modes,
    }
    return Part("jetson", says, facts, tuple(problems))
