"""Readers of power, clocks, temperatures and throttling, on trees that were written by hand (sensors/*.json)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pixelrt.bench.files import Files
from pixelrt.bench.machine import find_power, read_machine
from pixelrt.bench.meter import Meter, peak_resident
from pixelrt.bench.nvidia import FIELDS, NvmlPower, SmiPower, parse_gpu, read_gpus
from pixelrt.bench.rails import RailPower, find_rails
from pixelrt.bench.state import read_state, read_throttling, throttled

TREES = Path(__file__).parent / "sensors"
NAMES = ("orin_nano", "orin_agx", "thor", "server")


@pytest.fixture
def tree(tmp_path: Path):
    def written(name: str) -> Files:
        for path, text in json.loads((TREES / f"{name}.json").read_text())["files"].items():
            place = tmp_path / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return Files(tmp_path)

    return written


@pytest.mark.parametrize("name", NAMES)
def test_trees_say_where_they_come_from(name: str) -> None:
    assert json.loads((TREES / f"{name}.json").read_text())["source"]


@pytest.mark.parametrize(
    ("name", "rails", "watts"),
    [
        ("orin_nano", "VDD_IN", 5.048 * 1.440),  # the input alone: the two others are in it
        (
            "orin_agx",
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            19.888 * 0.8 + 4.968 * 0.953,
        ),  # memory is in the last
        ("thor", "VIN", 36.5),
    ],
)
def test_power_of_a_jetson(tree, name: str, rails: str, watts: float) -> None:
    sensor = find_power(tree(name), on_gpu=False)
    assert sensor is not None and sensor.name == f"power monitor: {rails}" and not sensor.counts
    assert sensor.read() == pytest.approx(watts)


def test_thor_without_its_input_monitor(tree) -> None:
    files = tree("thor")
    (files.root / "sys/class/hwmon/hwmon5/power1_input").unlink()
    power = RailPower(files, find_rails(files))
    assert power.read() == pytest.approx(11 + 6.6 + 6.5)


def test_no_power_where_no_sensor_is(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_power(tree("server"), on_gpu=False) is None
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert find_power(tree("server"), on_gpu=True) is None


def test_a_rail_that_stops_answering_is_not_zero(tree) -> None:
    files = tree("orin_agx")
    power = RailPower(files, find_rails(files))
    (files.root / "sys/class/hwmon/hwmon3/curr2_input").unlink()
    assert power.read() is None


def test_state_of_a_jetson(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert read_state(tree("orin_nano")) == {
        "load_average": 0.42,
        "temperatures_c": {"cpu": 49.812, "tj": 50.343},  # the GPU's zone cannot be read while it sleeps
        "clocks_mhz": {"cpu": [1510.4, 1510.4], "gpu": [624.75, 624.75]},
        "power_mode": "MAXN",
        "gpus": [],
    }


def test_state_of_a_server_and_of_nothing(tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    empty = read_state(Files(tmp_path / "nowhere"))
    assert empty == {
        "load_average": None,
        "temperatures_c": {},
        "clocks_mhz": {},
        "power_mode": None,
        "gpus": [],
    }
    found = read_state(tree("server"))
    assert found["power_mode"] == "governor schedutil" and found["clocks_mhz"] == {"cpu": [3100.0, 3400.0]}
    assert read_machine(tree("server"))["cpu"] == "A Server Processor"


def test_throttling(tree) -> None:
    files = tree("orin_nano")
    before = read_throttling(files)
    assert "state pwm-fan" not in before and before["count oc3_event_cnt"] == 4
    assert throttled(before, before, []) == (False, [])
    (files.root / "sys/class/thermal/cooling_device3/cur_state").write_text("1\n")
    (files.root / "sys/class/hwmon/hwmon0/oc3_event_cnt").write_text("5\n")
    assert throttled(before, read_throttling(files), []) == (True, ["cpu-throttle-alert", "oc3_event_cnt"])


def test_throttling_that_nobody_tells(tree) -> None:
    assert throttled({}, {}, []) == (None, [])
    assert throttled({}, {}, [{"held_back": None}]) == (None, [])
    assert throttled({}, {}, [{"held_back": []}]) == (False, [])
    assert throttled({}, {}, [{"held_back": ["power cap"]}]) == (True, ["GPU: power cap"])
    counted = read_throttling(tree("server"))  # counts of the past are no sign
    assert throttled(counted, counted, []) == (False, [])


def test_what_nvidia_smi_prints() -> None:
    """Lines written by hand after its documented CSV format."""
    found = parse_gpu("NVIDIA H200, 580.95.05, 41, 1980, 1980, 123.45, 1024, 0x0000000000000024")
    assert found == {
        "name": "NVIDIA H200", "driver": "580.95.05", "temperature_c": 41, "clock_mhz": 1980, "clock_max_mhz": 1980,
        "watts": 123.45, "used_mib": 1024, "held_back": ["power cap", "too hot (software)"],
    }  # fmt: skip
    tegra = parse_gpu("Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]")
    assert tegra is not None and tegra["watts"] is None and tegra["held_back"] is None
    assert parse_gpu("NVIDIA-SMI has failed") is None


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_an_older_driver_is_asked_by_the_older_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ", ".join(["1"] * len(FIELDS)) + ", 0x1"
    fake_smi(tmp_path, monkeypatch, f'case "$1" in *event*) exit 2;; esac; echo "{line}"')
    assert [gpu["held_back"] for gpu in read_gpus(Files())] == [[]]


def test_power_of_a_stream_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, "while echo 77.5; do sleep 0.02; done")
    sensor = SmiPower(str(tmp_path / "nvidia-smi"))
    for _ in range(500):
        if sensor.read() is not None:
            break
        time.sleep(0.01)
    assert sensor.read() == 77.5
    sensor.close()


class FakeNvml(SimpleNamespace):
    """pynvml's functions that are used. counter: None where the GPU has none."""

    class NVMLError(Exception):
        pass

    def __init__(self, counter: int | None) -> None:
        super().__init__(counter=counter)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        if self.counter is None:
            raise self.NVMLError("Not Supported")
        return self.counter

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        return 65_000


def test_nvml() -> None:
    counted = NvmlPower(FakeNvml(12_500))
    assert counted.counts and counted.read() == 12.5
    drawn = NvmlPower(FakeNvml(None))
    assert not drawn.counts and drawn.read() == 65.0


class Ramp:
    """counts: the joules since 0; else the watts, which grow by `slope` a second."""

    name = "ramp"

    def __init__(self, counts: bool, slope: float = 10.0) -> None:
        self.counts, self.slope = counts, slope

    def at(self, t: float) -> float:
        return self.slope * t**2 / 2 if self.counts else self.slope * t

    def read(self) -> float | None:
        return None


@pytest.mark.parametrize("counts", [False, True])
def test_energy_of_windows(counts: bool) -> None:
    """Windows between readings that are not evenly spread; joules of a power that grows evenly are known exactly."""
    meter, ramp = Meter(Files(), Ramp(counts)), Ramp(counts)
    steps = 4000 if counts else 40  # a straight line through a parabola is close where readings are
    meter._readings = [
        (8.0 * (i / steps) ** 1.5, ramp.at(8.0 * (i / steps) ** 1.5)) for i in range(steps + 1)
    ]
    windows = [(0.5, 1.25), (2.0, 2.0), (3.0, 7.9), (0.0, 8.0)]
    exact = sum(5 * (stop**2 - start**2) for start, stop in windows)
    assert meter.joules(windows) == pytest.approx(exact, rel=1e-5 if counts else 1e-12)
    assert (
        meter.joules([(7.0, 8.1)]) is None
        and meter.joules([(-0.1, 1.0)]) is None
        and meter.joules([]) is None
    )


def test_a_meter_runs_and_ends(tree) -> None:
    files = tree("orin_nano")
    with Meter(files, RailPower(files, find_rails(files)), period_s=0.005) as meter:
        start = time.perf_counter()
        while meter.readings < 3:
            time.sleep(0.002)
        stop = time.perf_counter()
    watts = (meter.joules([(start + (stop - start) / 2, stop)]) or 0) / ((stop - start) / 2)
    assert watts == pytest.approx(5.048 * 1.440) and meter.signs["count oc3_event_cnt"] == 4
    assert not meter._thread.is_alive()


def test_peak_memory() -> None:
    peak = peak_resident(Files())
    assert peak is not None and peak > 10 << 20
    assert peak_resident(Files(Path("/nowhere"))) is None
