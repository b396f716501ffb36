"""`make gpu-check`: build the kernels, run the tests marked `gpu`, time each kernel; write what ran on which hardware.

    python -m benchmarks.gpu_check        -> benchmarks/results/gpu-check.json

Needs a GPU and one of PyCUDA and CuPy for the tests, torch with CUDA for the times, nvcc unless the kernels are built.
With TensorRT the tests marked `tensorrt` build engines of both small bundles and compare their answers with ONNX
Runtime's. Where compute-sanitizer is at hand the tests of small shapes run under it too. Exit code 0 where there is
no GPU; where there is one, whatever kept it from being used is a failure, and stands in `problems`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelrt.backends import gpu_is_there
from pixelrt_kernels import build
from pixelrt_kernels.library import DEVICE, file_name

NOT_INSTALLED = "is not installed"  # a test of a package that this machine need not have
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


def run_tests() -> tuple[dict[str, int], dict[str, int]]:
    """Of the tests marked `gpu`: counts, and why how many were skipped."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", "-q"]
        subprocess.run(command, cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    reasons = Counter(skip.get("message", "") for skip in suite.iter("skipped"))
    return {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}, dict(reasons)


def problems(
    there: bool,
    gpus: list[dict[str, str]],
    counts: dict[str, int],
    skipped: dict[str, int],
    benchmarks: dict[str, Any],
) -> list[str]:
    """What went wrong, in sentences. there: this machine shows signs of a GPU, be it one that nobody can open."""
    found = []
    if counts["failures"] + counts["errors"]:
        found.append(f"{counts['failures'] + counts['errors']} of {counts['tests']} tests failed.")
    if there and not gpus:
        found.append("There is a GPU or its driver, but nvidia-smi lists none.")
    for reason, count in skipped.items() if there else ():
        if NOT_INSTALLED not in reason:
            found.append(f"{count} tests were skipped though there is a GPU: {reason}")
    if there and "not_run" in benchmarks:
        found.append(f"The kernels were not timed: {benchmarks['not_run']}")
    return found


def main() -> int:
    there, found = gpu_is_there(), gpus()
    built = build_kernels()
    counts, skipped = run_tests()
    benchmarks = time_kernels() if there else {"not_run": "no GPU found"}
    hardware = [gpu["name"] for gpu in found] or ("a GPU that cannot be opened" if there else "no GPU")
    wrong = problems(there, found, counts, skipped, benchmarks)
    record = {
        "hardware": hardware,
        "gpus": found,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": sys.version.split()[0],
        "kernels": built,
        "pytest": counts,
        "skipped": skipped,
        "compute_sanitizer": sanitize() if found else "not run: no GPU found",
        "benchmarks": benchmarks,
        "problems": wrong,
        "command": "make gpu-check",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"hardware: {hardware if isinstance(hardware, str) else ', '.join(hardware)}")
    print(f"wrote {RESULT.relative_to(ROOT)}")
    for sentence in wrong:
        print(sentence)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
