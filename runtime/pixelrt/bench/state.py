"""Temperatures, clocks, power mode, and signs that the machine slowed itself down. All from files; none needs root."""

from __future__ import annotations

import re
from typing import Any

from pixelrt.bench.files import Files
from pixelrt.bench.nvidia import read_gpus

CPU = "/sys/devices/system/cpu"
THERMAL = "/sys/class/thermal"
# Cooling devices that are not a fan: while their state is above 0, something runs slower.
SLOWING = re.compile(r"cpufreq|devfreq|throttle|Processor|intel_powerclamp")


def read_state(files: Files) -> dict[str, Any]:
    """temperatures_c, clocks_mhz ([now, highest] by processor), power_mode, load_average, gpus. Empty or None where
    not said."""
    load = (files.read("/proc/loadavg") or "").split()
    return {
        "load_average": float(load[0]) if load else None,
        "temperatures_c": read_temperatures(files),
        "clocks_mhz": read_clocks(files),
        "power_mode": read_power_mode(files),
        "gpus": read_gpus(files),
    }


def read_temperatures(files: Files) -> dict[str, float]:
    """By zone. A zone whose processor is switched off cannot be read and is left out."""
    found = {}
    for place in files.paths(f"{THERMAL}/thermal_zone*"):
        name, value = files.read(f"{place}/type"), files.number(f"{place}/temp")
        if name and value is not None and -50_000 < value < 200_000:
            found[name.removesuffix("-thermal")] = value / 1e3
    return found


def read_clocks(files: Files) -> dict[str, list[float | None]]:
    """Of the CPU the mean over cores and the highest allowed; of a Jetson's GPU the same from devfreq."""
    found: dict[str, list[float | None]] = {}
    now, most = [], []
    for place in files.paths(f"{CPU}/cpu[0-9]*/cpufreq"):
        current, highest = (files.number(f"{place}/scaling_{which}_freq") for which in ("cur", "max"))
        now += [] if current is None else [current / 1e3]
        most += [] if highest is None else [highest / 1e3]
    if now:
        found["cpu"] = [sum(now) / len(now), max(most, default=None)]
    for place in files.paths("/sys/class/devfreq/*"):
        if re.search(r"gpu|gpc", place.rpartition("/")[2]):
            current, highest = (files.number(f"{place}/{which}_freq") for which in ("cur", "max"))
            if current is not None:
                found["gpu"] = [current / 1e6, None if highest is None else highest / 1e6]
    return found


def read_power_mode(files: Files) -> str | None:
    """nvpmodel's on a Jetson (by its own files), elsewhere the CPU's frequency governor."""
    current = re.search(r"pmode:(\d+)", files.read("/var/lib/nvpmodel/status") or "")
    conf = files.read("/etc/nvpmodel.conf") or ""
    default = re.search(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)", conf, re.MULTILINE)
    mode = current or default
    if mode is not None:
        number = int(mode[1])
        for line in re.findall(r"^<\s*POWER_MODEL\s([^>]*)>", conf, re.MULTILINE):
            pairs = dict(re.findall(r"(\w+)=(\S+)", line))
            if pairs.get("ID") == str(number) and "NAME" in pairs:
                return str(pairs["NAME"])
        return f"mode {number}"
    governor = files.read(f"{CPU}/cpu0/cpufreq/scaling_governor")
    return f"governor {governor}" if governor else None


def read_throttling(files: Files) -> dict[str, float]:
    """Sign -> number. `state …` is above 0 while something is slowed; `count …` goes up when it was."""
    found: dict[str, float] = {}
    for place in files.paths(f"{THERMAL}/cooling_device*"):
        kind, value = files.read(f"{place}/type"), files.number(f"{place}/cur_state")
        if kind and value is not None and SLOWING.search(kind):
            name = f"state {kind}"
            found[name] = max(found.get(name, 0.0), value)
    counters = [
        *files.paths("/sys/class/hwmon/hwmon*/oc*_event_cnt"),  # a Jetson's over-current alarms
        *files.paths(f"{CPU}/cpu[0-9]*/thermal_throttle/core_throttle_count"),
        *files.paths(f"{CPU}/cpu[0-9]*/thermal_throttle/package_throttle_count"),
    ]
    for path in counters:
        value = files.number(path)
        if value is not None:
            name = "count " + path.rpartition("/")[2]
            found[name] = found.get(name, 0.0) + value
    return found


def throttled(
    before: dict[str, float], during: dict[str, float], gpus: list[dict[str, Any]]
) -> tuple[bool | None, list[str]]:
    """Whether anything was slowed, and what; None where nothing tells.

    before, during: signs, the second with the highest seen. gpus: readings of the GPUs used.
    """
    told = bool(during) or any(gpu.get("held_back") is not None for gpu in gpus)
    signs = [
        name.partition(" ")[2]
        for name, value in during.items()
        if (value > 0 if name.startswith("state") else value > before.get(name, value))
    ]
    signs += sorted({f"GPU: {word}" for gpu in gpus for word in gpu.get("held_back") or ()})
    return (bool(signs) if told else None), signs
