"""State of an NVIDIA GPU through nvidia-smi; its power through NVML (nvidia-ml-py), else nvidia-smi."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from pixelrt.bench.files import Files

FIELDS = (
    "name",
    "driver_version",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "power.draw",
    "memory.used",
)
# Newer drivers, older drivers
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# nvml.h, nvmlClocksEventReasons: bits that mean the GPU runs slower than asked; idle, application and display
# clocks do not.
HELD_BACK = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
STREAM_MS = 200


def read_gpus(files: Files) -> list[dict[str, Any]]:
    """Of each GPU name, driver, temperature_c, clock_mhz, clock_max_mhz, watts, used_mib, held_back.

    A value is None where it is not said.
    """
    for reasons in REASONS:
        asked = ",".join((*FIELDS, reasons))
        text = files.run("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits")
        if text is not None:
            return [found for line in text.splitlines() if (found := parse_gpu(line))]
    return []


def parse_gpu(line: str) -> dict[str, Any] | None:
    """One line of the query above."""
    row = [cell.strip() for cell in line.split(",")]
    if len(row) != len(FIELDS) + 1:
        return None
    names = ("temperature_c", "clock_mhz", "clock_max_mhz", "watts", "used_mib")
    numbers = {name: number_of(cell) for name, cell in zip(names, row[2:-1], strict=True)}
    try:
        bits: int | None = int(row[-1], 16)
    except ValueError:
        bits = None
    held = None if bits is None else [word for bit, word in HELD_BACK.items() if bits & bit]
    return {"name": row[0], "driver": row[1], **numbers, "held_back": held}


def number_of(cell: str) -> float | None:
    """A cell such as `54.20`; None for `[N/A]` and the like."""
    with suppress(ValueError):
        return float(cell)
    return None


class NvmlPower:
    """Energy counter of the first GPU, else its power."""

    def __init__(self, nvml: Any) -> None:
        """nvml: the module pynvml. Raises its NVMLError where the GPU tells neither."""
        nvml.nvmlInit()
        self.nvml, self.device = nvml, nvml.nvmlDeviceGetHandleByIndex(0)
        self.counts, self.name = True, "NVML: energy counter of GPU 0"
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(self.device)
        except nvml.NVMLError:
            nvml.nvmlDeviceGetPowerUsage(self.device)
            self.counts, self.name = False, "NVML: power of GPU 0"

    def read(self) -> float | None:
        try:
            if self.counts:
                return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device)) / 1e3
            return float(self.nvml.nvmlDeviceGetPowerUsage(self.device)) / 1e3
        except self.nvml.NVMLError:
            return None


class SmiPower:
    """The last line of one nvidia-smi that prints on, for a process a reading would cost more than the reading."""

    counts, name = False, "nvidia-smi: power of GPU 0"

    def __init__(self, program: str = "nvidia-smi") -> None:
        """Raises OSError where there is no such program."""
        command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0"]
        self._last: deque[float | None] = deque([None], maxlen=1)
        self._process = subprocess.Popen(
            [*command, f"--loop-ms={STREAM_MS}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(number_of(line.strip()))
        self._last.append(None)

    def read(self) -> float | None:
        return self._last[0]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
