"""`make gpu-check`: run the tests marked `gpu` and write what ran on which hardware.

python -m benchmarks.gpu_check        -> benchmarks/results/gpu-check.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu-check.json"
QUERY = ("name", "driver_version", "memory.total", "compute_cap")
NO_TESTS = 5  # pytest's exit code when nothing was selected


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; empty where there is none, or no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(QUERY, row, strict=True)) for row in rows]


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
    code, counts = run_tests()
    hardware = [gpu["name"] for gpu in found] or "no GPU"
    record = {
        "hardware": hardware,
        "gpus": found,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": sys.version.split()[0],
        "pytest": counts,
        "command": "make gpu-check",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"hardware: {', '.join(hardware) if found else 'no GPU found'}")
    if code == NO_TESTS:
        print("This release has no tests that need a GPU yet.")
    print(f"wrote {RESULT.relative_to(ROOT)}")
    return 0 if code == NO_TESTS else code


if __name__ == "__main__":
    raise SystemExit(main())
