"""What `scripts/venv.sh` does on a Jetson, with a Python that only writes down its arguments; what pip finds there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  *"-m venv"*) folder=${@: -1}; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"
    [[ $* == *--system-site-packages* ]] && seen=true || seen=false
    echo "include-system-site-packages = $seen" > "$folder/pyvenv.cfg" ;;
  *"import tensorrt"*) exit "${NO_TENSORRT:-0}" ;;
esac
"""
RELEASES = {"file": "etc/nv_tegra_release", "device tree": "proc/device-tree/compatible"}


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """Just what the script reads, and the Python that writes everything down."""
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    for name in ("scripts/venv.sh", "pyproject.toml"):
        shutil.copy(root / name, clone / name)
    (tmp_path / "python3.10").write_text(FAKE)
    (tmp_path / "python3.10").chmod(0o755)
    return clone


def jetson(folder: Path, how: str = "file") -> Path:
    place = folder / RELEASES[how]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"nvidia,p3701-0005\0nvidia,tegra234\0")
    return folder


def made(
    checkout: Path, extras: str = "cpu", **settings: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    log = checkout.parent / "log"
    log.write_text("")
    known = {"LOG": str(log), "PIXELRT_PYTHON": str(checkout.parent / "python3.10")}
    done = subprocess.run(
        [checkout / "scripts" / "venv.sh", checkout / ".venv", extras],
        env={**os.environ, **known, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text().splitlines()


@pytest.mark.parametrize("how", RELEASES)
def test_on_a_jetson(checkout: Path, tmp_path: Path, how: str) -> None:
    done, calls = made(checkout, PIXELRT_ROOT=str(jetson(tmp_path / "root", how)))
    assert done.returncode == 0, done.stderr
    assert [c for c in calls if "-m venv" in c] == [
        f"python3.10 -m venv --system-site-packages {checkout}/.venv"
    ]
    (install,) = [c for c in calls if "pip" in c]
    assert "numpy>=1.26,<2" in install and "[cpu]" in install and "tensorrt" not in install
    assert "finds no TensorRT" not in done.stdout
    again, calls = made(checkout, PIXELRT_ROOT=str(tmp_path / "root"))
    assert again.returncode == 0 and not [c for c in calls if "pip" in c]


def test_elsewhere(checkout: Path, tmp_path: Path) -> None:
    done, calls = made(checkout, PIXELRT_ROOT=str(tmp_path))
    assert done.returncode == 0
    assert not [c for c in calls if "system-site" in c or "numpy" in c or "tensorrt" in c]


def test_what_a_jetson_refuses(checkout: Path, tmp_path: Path) -> None:
    made(checkout, PIXELRT_ROOT=str(tmp_path))  # an environment that does not see the system's packages
    root = {"PIXELRT_ROOT": str(jetson(tmp_path / "root"))}
    done, calls = made(checkout, **root)
    assert done.returncode == 1 and done.stderr.endswith(f"rm -rf {checkout}/.venv\n")
    assert not [c for c in calls if "pip" in c]
    shutil.rmtree(checkout / ".venv")
    done, calls = made(checkout, "cpu,tensorrt", **root)
    assert done.returncode == 1 and "its own TensorRT" in done.stderr and not calls
    done, calls = made(checkout, NO_TENSORRT="1", **root)
    assert done.returncode == 0 and "finds no TensorRT" in done.stdout


# ---- what pip finds -----------------------------------------------------------------------------------------

PLATFORMS = [
    f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014")
]  # JetPack 6 has glibc 2.35


def requirements(root: Path, extra: str) -> list[str]:
    """Of pyproject.toml: what is always needed, and an extra. (tomllib is not in Python 3.10.)"""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found: list[str] = []
    for name in ("dependencies", extra):
        body = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        assert body, name
        found += re.findall(r'"([^"]+)"', body[1])
    return found


def resolved(root: Path, python: str, *further: str) -> dict[str, str]:
    """Name -> version that pip would install on aarch64 without compiling anything. Nothing is installed.

    pip applies markers for the Python that runs it, so packages for one Python alone may be missing or too many.
    """
    platforms = [word for tag in PLATFORMS for word in ("--platform", tag)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--timeout", "15", "--retries", "1", "install",
         "--quiet", "--dry-run", "--ignore-installed", "--target", "unused", "--only-binary=:all:",
         "--implementation", "cp", "--python-version", python, *platforms, "--report", "-",
         *further, *requirements(root, "cpu")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "(from versions: none)" in done.stderr:
        pytest.skip(
            "no package index can be reached: whether pip finds wheels for a Jetson was not looked at"
        )
    assert done.returncode == 0, done.stderr
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {item["name"].lower(): item["version"] for item in found}


@pytest.mark.parametrize(("python", "further"), [("3.10", "numpy==1.26.4"), ("3.12", "numpy>=1.26")])
def test_wheels_for_a_jetson(root: Path, python: str, further: str) -> None:
    """JetPack 6 has Python 3.10, and modules that were compiled for numpy 1; JetPack 7 has Python 3.12."""
    found = resolved(root, python, further)
    assert {"numpy", "pillow", "tokenizers", "click", "onnxruntime"} <= found.keys()
    newest = {"3.10": ("1.26.4", "1.23.2"), "3.12": (None, None)}[python]
    assert newest[0] in (None, found["numpy"]) and newest[1] in (None, found["onnxruntime"])
    assert "tensorrt" not in found
