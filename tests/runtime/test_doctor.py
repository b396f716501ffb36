"""`pixelrt doctor` on recorded machines; machines/README.md says which were recorded and which written by hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from machines.recorded import NAMES, machine_of, recording
from pixelrt.cli import doctor as command
from pixelrt.cli import main
from pixelrt.doctor import examine, gpu, jetson
from pixelrt.doctor import machine as machine_module
from pixelrt.doctor.machine import Machine, this_machine
from pixelrt.doctor.onnx_runtime import PROBE
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import Requirement, release

Change = Callable[[dict[str, Any]], None]
ORT, SMI = " ".join(PROBE), " ".join(gpu.QUERY)
TRT = "python -c import tensorrt; print(tensorrt.__version__)"


def examined(name: str, root: Path, change: Change = lambda _: None) -> dict[str, Part]:
    recorded = recording(name)
    change(recorded)
    return {part.name: part for part in examine(machine_of(recorded, root))}


def problems(parts: dict[str, Part]) -> list[Problem]:
    return [problem for part in parts.values() for problem in part.problems]


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_has_its_mend(name: str, tmp_path: Path) -> None:
    parts = examined(name, tmp_path)
    assert next(iter(parts)) == "system" and ("jetson" in parts) == (name in ("orin", "thor"))
    for problem in problems(parts):
        assert problem.command and problem.what.strip() and problem.mend.endswith(".")
    json.dumps(command.document(list(parts.values())), allow_nan=False)


def test_orin(tmp_path: Path) -> None:
    parts = examined("orin", tmp_path)
    assert parts["system"].says.startswith(
        "Ubuntu 22.04.5 LTS, aarch64, Python 3.10.12, 65.9 GB of memory (58.5"
    )
    assert parts["jetson"].says == (
        "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3 (JetPack 6.2), power mode MODE_30W"
    )
    assert parts["gpu"].says == "Orin (nvgpu) (sm_87), driver 540.4.0"
    assert parts["cuda"].facts["toolkit"] == "12.6.11"
    assert parts["tensorrt"].says == "TensorRT 10.3.0; the system's is 10.3.0.30"
    assert "compatibility twin" in parts["onnxruntime"].says
    assert [p.command for p in problems(parts)] == [
        "sudo nvpmodel -m 0",
        "echo 'export PATH=/usr/local/cuda/bin:$PATH' >> ~/.bashrc && source ~/.bashrc",
        "python -m pixelrt_kernels.build --host",
    ]
    assert not any(p.stops for p in problems(parts))


def test_tensorrt_without_a_distribution(tmp_path: Path) -> None:
    assert "TensorRT 10.3.0" in examined("orin", tmp_path, package("tensorrt", None))["tensorrt"].says


def test_thor(tmp_path: Path) -> None:
    parts = examined("thor", tmp_path)
    assert parts["jetson"].says.endswith("L4T 38.4.0 (JetPack 7.1), power mode MAXN")
    assert parts["gpu"].facts["gpus"][0]["architecture"] == "sm_110"
    assert parts["cuda"].says == "toolkit 13.0.2, nvcc on PATH"
    assert not problems(parts)


def test_server(tmp_path: Path) -> None:
    parts = examined("server", tmp_path)
    assert parts["gpu"].says == ("2 x NVIDIA H100 80GB HBM3 (sm_90, 80 GiB), driver 580.95.05")
    assert parts["gpu"].facts["cards_on_the_bus"] == 2  # not the NVSwitch
    assert parts["tensorrt"].facts["python"] == {"TensorRT": "11.4.0", "TensorRT-RTX": None}
    assert parts["onnxruntime"].says == "1.31.0: Tensorrt, CUDA, CPU"
    full, broken = problems(parts)
    assert full.what == "79,800 of 81,559 MiB of NVIDIA H100 80GB HBM3 are taken."
    assert "libcudart.so.13" in broken.what and "pixelrt[tensorrt-rtx]" in broken.command


def test_container(tmp_path: Path) -> None:
    parts = examined("container", tmp_path)
    assert "in a container" in parts["system"].says and "2.1 GB of memory (0.9 free)" in parts["system"].says
    stops = [p for p in problems(parts) if p.stops]
    assert [p.command for p in stops] == ["pip install 'pixelrt[cpu]'"]
    commands = [p.command for p in problems(parts)]
    assert "docker run --gpus all …" in commands and "sudo apt install g++" in commands


def test_debian(tmp_path: Path) -> None:
    """The one that was recorded."""
    parts = examined("debian", tmp_path)
    assert parts["gpu"].says == "none" and parts["cuda"].facts == {"toolkit": "13.0.88", "nvcc": "13.0.88"}
    assert parts["onnxruntime"].facts["providers"] == ["AzureExecutionProvider", "CPUExecutionProvider"]
    assert parts["packages"].facts["extras"]["train"] == "complete"
    assert parts["packages"].facts["extras"]["nf4"] == ["bitsandbytes"]
    assert [p.command for p in problems(parts)] == ["python -m pixelrt_kernels.build --host"]


def answer(command: str, code: int | None, out: str = "", err: str = "") -> Change:
    return lambda r: r["commands"].update({command: [code, out, err]})


def without(kind: str, name: str) -> Change:
    return lambda r: r[kind].pop(name)


def package(name: str, version: str | None) -> Change:
    return lambda r: r["packages"].pop(name) if version is None else r["packages"].update({name: version})


def file(path: str, text: str) -> Change:
    return lambda r: r["files"].update({path: text})


def value(name: str, new: object) -> Change:
    return lambda r: r.update({name: new})


OLD_L4T = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n"
STATUS, CONF = "/var/lib/nvpmodel/status", "/etc/nvpmodel.conf"
MODES = "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL NAME=MODE_50W ID=1 >\n< PM_CONFIG DEFAULT=1 >\n"
DRIVER = "/proc/driver/nvidia/version"


@pytest.mark.parametrize(
    ("name", "changes", "said", "stops"),
    [
        ("debian", [value("python", [3, 9, 2])], "not one of 3.10 to 3.13", True),
        ("debian", [value("processor", "armv7l")], "armv7l processors", True),
        ("debian", [file("/proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 500000 kB\n")], "512 MB", False),
        ("debian", [package("numpy", "1.24.4")], "needs numpy>=1.26,<3; 1.24.4 is installed", True),
        ("debian", [package("tokenizers", None)], "needs tokenizers>=0.21,<0.24; it is not installed", True),
        ("debian", [package("torch", "2.14.1")], "pixelrt[export] needs torch", False),
        ("debian", [package("onnxruntime", "1.32.0")], "pixelrt[cpu] needs onnxruntime", False),
        ("debian", [package("numpy", "3.0.1")], "needs numpy>=1.26,<3; 3.0.1 is installed", False),
        ("debian", [package("onnxruntime-gpu", "1.31.1")], "overwrite each other", False),
        ("debian", [answer(ORT, -11)], "cannot be imported: it does not answer", True),
        ("debian", [answer(ORT, None)], "cannot be imported: it does not answer", True),
        ("debian", [answer(ORT, 0, "nonsense")], "cannot be imported", True),
        ("debian", [answer(ORT, 0, '["1.20.0", ["CPUExecutionProvider"]]')], "older than 1.23.2", True),
        ("debian", [answer(ORT, 0, '["1.31.1", []]')], "no CPU provider", True),
        ("debian", [value("requires", [])], "is not installed, so that versions", False),
        ("debian", [value("library", "cannot be used (x)")], "host library cannot be used (x)", False),
        ("orin", [file("/etc/nv_tegra_release", OLD_L4T)], "L4T 35.4.1 is older than JetPack 6", False),
        ("orin", [without("files", "/var/lib/dpkg/status")], "JetPack's TensorRT is not installed", False),
        ("orin", [package("tensorrt", None), answer(TRT, 1)], "does not see JetPack's TensorRT 10.3.0.30", False),
        ("orin", [answer(TRT, 0), value("python", [3, 12, 1])], "system's Python 3.10", False),
        ("orin", [answer(TRT, 0, "10.9.0.34\n")], "of pip hides JetPack's 10.3.0.30", False),
        ("orin", [without("files", STATUS), file(CONF, MODES)], "MODE_50W holds the clocks", False),
        ("server", [answer(SMI, 18, "Failed to initialize NVML: Driver/library version mismatch")],
         "580.95.05 and its libraries", False),
        ("server", [answer(SMI, 9, "NVIDIA-SMI has failed.\n")], "nvidia-smi says: NVIDIA-SMI has failed", False),
        ("server", [answer(SMI, None)], "nvidia-smi does not answer", False),
        ("server", [without("commands", SMI)], "there is no nvidia-smi", False),
        ("server", [without("files", DRIVER), without("commands", SMI)], "no driver for it is loaded", False),
        ("server", [file(DRIVER, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  x\n")],
         "CUDA 13.0.2 needs driver 580.65.06", False),
        ("server", [file(DRIVER, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  515.105.01  x\n")],
         "older than 525.60.13", False),
        ("server", [answer(TRT, 0, "8.6.1\n")], "TensorRT 8.6.1 is not one of 10.3 to 11", False),
    ],
)  # fmt: skip
def test_what_can_be_wrong(name: str, changes: list[Change], said: str, stops: bool, tmp_path: Path) -> None:
    """A sound machine with one fault, or an unsound one with a further one."""

    def change(recorded: dict[str, Any]) -> None:
        for one in changes:
            one(recorded)

    found = [p for p in problems(examined(name, tmp_path, change)) if said in p.what]
    assert len(found) == 1 and found[0].stops == stops and found[0].command
    (tmp_path / "sound").mkdir()
    assert not [p for p in problems(examined(name, tmp_path / "sound")) if p == found[0]]


def test_gpu_without_anything_that_uses_it(tmp_path: Path) -> None:
    def bare(r: dict[str, Any]) -> None:
        for name in ("tensorrt", "tensorrt-cu13", "tensorrt-rtx"):
            del r["packages"][name]
        answer(ORT, 0, '["1.31.1", ["CPUExecutionProvider"]]')(r)

    said = [p.what for p in problems(examined("server", tmp_path, bare))]
    assert any(what.startswith("Nothing here runs graphs on the GPU") for what in said)


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("36.4.0", "6.1"), ("36.4.3", "6.2"), ("36.4.4", "6.2.1"), ("36.5.0", "6.2.2"), ("36.40", None),
     ("38.2.1", "7.0"), ("38.4.0", "7.1"), ("39.2.1", "7.2"), ("99.1", None), (None, None)],
)  # fmt: skip
def test_jetpack_by_l4t(l4t: str | None, jetpack: str | None) -> None:
    assert jetson.jetpack_of(l4t) == jetpack


def test_requirements() -> None:
    parse = Requirement.parse
    assert parse('pixelrt[export, nf4]; extra == "train"') == Requirement(
        "pixelrt", "", "train", ("export", "nf4")
    )
    assert parse("ml_dtypes (>=0.5,<1) ; extra == 'export'").name == "ml-dtypes"
    numpy = parse("numpy<3,>=1.26")
    assert [numpy.allows(v) for v in ("1.26.4", "1.25.9", "2.4.6+x", "3.0", "3.0.0rc1")] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert [numpy.is_too_old(v) for v in ("1.25.9", "1.26", "3.0")] == [True, False, False]
    assert release("2.13.0+cpu") == (2, 13) and release("nonsense") == ()
    assert parse("a==1.0").allows("1.0.0") and not parse("a!=1.0").allows("1")


def test_pip_s_own_reading_agrees() -> None:
    packaging = pytest.importorskip("packaging.requirements", reason="packaging is not installed")
    for text in recording("debian")["requires"]:
        wanted, found = packaging.Requirement(text), Requirement.parse(text)
        assert wanted.name == found.name and set(wanted.extras) == set(found.of)
        for version in ("0.5", "1.26", "1.31.1", "2.13.0", "3", "5.23", "11.4", "2025.1", "2026.1.1"):
            assert wanted.specifier.contains(version) == found.allows(version), (text, version)


def test_hostile_files_are_no_trouble(tmp_path: Path) -> None:
    """Bytes that are no text, folders in place of files, numbers that are none."""
    recorded = recording("orin")
    for path in recorded["files"]:
        recorded["files"][path] = (
            "\x00\ud7ff{]< POWER_MODEL ID=x NAME >\npmode:\n# R36 (release), REVISION: \n"
        )
    for key in recorded["commands"]:
        recorded["commands"][key] = [0, "\x00,,,,\n\n", ""]
    machine = machine_of(recorded, tmp_path)
    os.remove(tmp_path / "proc/meminfo")
    (tmp_path / "proc/meminfo").mkdir()
    assert "memory not known" in examine(machine)[0].says


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one: every reader runs; a program that hangs is left; JSON is JSON, and the exit code its verdict."""
    done = CliRunner().invoke(main, ["doctor", "--json"], prog_name="pixelrt")
    document = json.loads(done.output)
    assert document["runs"] == (done.exit_code == 0) == (not any(p["stops"] for p in document["problems"]))
    assert document["parts"]["onnxruntime"]["version"]
    said = CliRunner().invoke(main, ["doctor"], prog_name="pixelrt")
    assert said.output.splitlines()[0].startswith("system ") and "pixelrt from running here." in said.output
    monkeypatch.setattr(machine_module, "SECONDS", 0.2)
    assert this_machine().run(("sleep", "5")) == machine_module.Ran(None)
    assert this_machine().run(("no-such-program",)) is None


def test_exit_code_and_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stops comes first, and makes the exit code 1."""
    stub: Callable[[], Machine] = lambda: machine_of(recording("container"), tmp_path)  # noqa: E731
    monkeypatch.setattr(machine_module, "this_machine", stub)
    done = CliRunner().invoke(main, ["doctor"], prog_name="pixelrt")
    assert done.exit_code == 1
    assert done.output.index("STOPS") < done.output.index("note ")
    assert done.output.rstrip().endswith("1 problem keeps pixelrt from running here. 4 notes above.")


def test_commands_name_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(
        "x",
        "",
        {},
        (Problem("a", "b", "pip uninstall -y x && pip install 'y'"), Problem("a", "b", "python -m z")),
    )
    monkeypatch.setattr(command.shutil, "which", lambda _: "/elsewhere/python")
    typed = [p.command for p in command.typed(part).problems]
    python = sys.executable
    assert typed == [f"{python} -m pip uninstall -y x && {python} -m pip install 'y'", f"{python} -m z"]
    monkeypatch.setattr(command.shutil, "which", lambda _: python)
    assert command.typed(part) is part
