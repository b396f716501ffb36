"""Power of a Jetson's module from its monitors (INA3221, on Thor also INA238), through Linux' hwmon files.

Source of the labels: the device trees of Linux (tegra234-p3701.dtsi, tegra234-p3767.dtsi) and NVIDIA's Jetson Linux
Developer Guide, "Power Monitoring".
"""

from __future__ import annotations

from dataclasses import dataclass

from pixelrt.bench.files import Files

HWMON = "/sys/class/hwmon"
WHOLE = ("VDD_IN", "VIN")  # the module's or board's input: what other rails draw is in it
INSIDE = ("VDDQ_VDD2_1V8AO",)  # drawn from VIN_SYS_5V0, which is measured too
CHANNELS = (1, 2, 3)  # 4 to 7 are shunts and sums


@dataclass(frozen=True)
class Rail:
    """Files in mV and mA; or `power` in microwatts."""

    label: str
    voltage: str = ""
    current: str = ""
    power: str = ""

    def watts(self, files: Files) -> float | None:
        if self.power:
            found = files.number(self.power)
            return None if found is None else found * 1e-6
        millivolts, milliamperes = files.number(self.voltage), files.number(self.current)
        return (
            None if millivolts is None or milliamperes is None else max(0.0, millivolts * milliamperes * 1e-6)
        )


def find_rails(files: Files) -> list[Rail]:
    """All rails that have a label and can be read."""
    rails = []
    for place in files.paths(f"{HWMON}/hwmon*"):
        chip = files.read(f"{place}/name") or ""
        if chip == "ina3221":
            for n in CHANNELS:
                label = files.read(f"{place}/in{n}_label") or ""
                rails.append(Rail(label, f"{place}/in{n}_input", f"{place}/curr{n}_input"))
        elif chip.startswith("ina238"):
            label = files.read(f"{place}/label") or WHOLE[1]
            rails.append(Rail(label, power=f"{place}/power1_input"))
    return [rail for rail in rails if rail.label not in ("", "NC") and rail.watts(files) is not None]


class RailPower:
    """What the module draws: its input where that is measured, else the rails that are in no other."""

    counts = False  # gives watts, not joules

    def __init__(self, files: Files, rails: list[Rail]) -> None:
        whole = [rail for rail in rails if rail.label in WHOLE][:1]
        self.files = files
        self.rails = whole or [rail for rail in rails if rail.label not in INSIDE]
        self.name = "power monitor: " + " + ".join(rail.label for rail in self.rails)

    def read(self) -> float | None:
        found = [rail.watts(self.files) for rail in self.rails]
        known = [watts for watts in found if watts is not None]
        return sum(known) if len(known) == len(found) else None
