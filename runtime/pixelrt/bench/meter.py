"""A thread that reads power, memory and throttling beside a measurement, and what an answer took of them."""

from __future__ import annotations

import re
import threading
import time
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.files import Files
from pixelrt.bench.state import read_throttling

PERIOD_S = 0.1  # the monitors of a Jetson give 10 to 20 readings a second
WATCH_EVERY = 20  # readings of power to one of the signs of throttling

Floats = NDArray[np.float64]


class PowerSensor(Protocol):
    """counts: `read` gives joules since some time, else watts."""

    name: str
    counts: bool

    def read(self) -> float | None: ...


class Meter:
    """Use it inside `with`; `joules` may be asked afterwards."""

    def __init__(self, files: Files, sensor: PowerSensor | None, period_s: float = PERIOD_S) -> None:
        self.files, self.sensor, self.period_s = files, sensor, period_s
        self.signs: dict[str, float] = {}  # of throttling, the highest seen
        self.cpu_s = 0.0  # that the thread itself took
        self._readings: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        close = getattr(self.sensor, "close", None)
        if close is not None:
            close()

    @property
    def readings(self) -> int:
        return len(self._readings)

    def joules(self, windows: list[tuple[float, float]]) -> float | None:
        """Energy within windows of `time.perf_counter`; None where the readings do not reach around all of them."""
        if len(self._readings) < 2 or not windows or self.sensor is None:
            return None
        times, values = np.array(self._readings).T
        starts, stops = np.array(windows).T
        if starts.min() < times[0] or stops.max() > times[-1]:
            return None
        if not self.sensor.counts:  # watts: the area below the line through the readings
            middle = (values[1:] + values[:-1]) / 2
            exact = [_area(times, values, middle, t) for t in (*starts, *stops)]
            half = len(starts)
            return float(sum(exact[half:]) - sum(exact[:half]))
        return float((np.interp(stops, times, values) - np.interp(starts, times, values)).sum())

    def _read_on(self) -> None:
        tick = 0
        while True:
            if self.sensor is not None:
                value = self.sensor.read()
                if value is not None:
                    self._readings.append((time.perf_counter(), value))
            if tick % WATCH_EVERY == 0:
                for name, sign in read_throttling(self.files).items():
                    self.signs[name] = max(self.signs.get(name, 0.0), sign)
            tick += 1
            self.cpu_s = time.thread_time()
            if self._stop.wait(self.period_s):
                break
        if self.sensor is not None:  # one reading behind the last window
            value = self.sensor.read()
            if value is not None:
                self._readings.append((time.perf_counter(), value))


def _area(times: Floats, values: Floats, middle: Floats, until: float) -> float:
    """Below the broken line from times[0] to `until`."""
    k = min(int(np.searchsorted(times, until, "right")) - 1, len(times) - 2)
    whole = float((middle[:k] * np.diff(times)[:k]).sum())
    part = until - times[k]
    slope = (values[k + 1] - values[k]) / (times[k + 1] - times[k])
    return whole + float(part * (values[k] + slope * part / 2))


def peak_resident(files: Files) -> int | None:
    """Bytes: the most this process ever had in memory, mapped files included."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", files.read("/proc/self/status") or "", re.MULTILINE)
    return int(match[1]) << 10 if match else None
