"""`make gpu-check`: build the kernels, run the tests marked `gpu`, time each kernel; write what ran on which hardware.

    python -m benchmarks.gpu_check        -> benchmarks/results/gpu-check.json

Needs a GPU and one of PyCUDA and CuPy for the tests, torch with CUDA for the times, nvcc unless the kernels are built.
Where compute-sanitizer is at hand the tests of small shapes run under it too. Exit code 0 where there is no GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelrt_kernels import build
from pixelrt_kernels.library import DEVICE, file_name

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu-check.json"
QUERY = ("name", "driver_version", "memory.total", "compute_cap")


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; empty where there is none, or no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(QUERY, row, strict=True)) for row in rows]


def build_kernels() -> str:
    """What `python -m pixelrt_kernels.build` made of the GPU code, in a few words."""
    if build.compiler(DEVICE) is None:
        return "not built: no nvcc"
    return file_name(DEVICE) if build.main(["--device"]) == 0 else "not built: nvcc failed"


def time_kernels() -> dict[str, Any]:
    """The record of gpu_kernels.py, or what kept it from running to its end."""
    try:
        from benchmarks import gpu_kernels

        record = gpu_kernels.measure()
    except (ImportError, LookupError, RuntimeError) as error:  # CUDA errors are RuntimeErrors
        return {"not_run": f"{type(error).__name__}: {error}"}
    gpu_kernels.print_table(record)
    return record


def sanitize() -> str:
    """The last line of compute-sanitizer's report on the small shapes."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "not run: no compute-sanitizer"
    command = [program, sys.executable, "-m", "pytest", "-m", "gpu", "-k", "not large", "-q", "tests/kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    return lines[-1].strip("= ") if lines else f"not run: {done.stderr[-300:]}"


def run_tests() -> tuple[int, dict[str, int]]:
    """(pytest's exit code, counts) of the tests marked `gpu`."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", "-q"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return code, {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}


def main() -> int:
    found = gpus()
    built = build_kernels()
    code, counts = run_tests()
    benchmarks = time_kernels() if found else {"not_run": "no GPU found"}
    hardware = [gpu["name"] for gpu in found] or "no GPU"
    record = {
        "hardware": hardware,
        "gpus": found,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": sys.version.split()[0],
        "kernels": built,
        "pytest": counts,
        "compute_sanitizer": sanitize() if found else "not run: no GPU found",
        "benchmarks": benchmarks,
        "command": "make gpu-check",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"hardware: {', '.join(hardware) if found else 'no GPU found'}")
    print(f"wrote {RESULT.relative_to(ROOT)}")
    if found and counts["skipped"]:
        print(f"{counts['skipped']} tests were skipped though there is a GPU; pytest says why above.")
        return 1
    if found and "not_run" in benchmarks:
        print(f"The kernels were not timed: {benchmarks['not_run']}")
        return 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
