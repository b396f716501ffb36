"""What the compiler says of each kernel: registers, spills, shared memory. Needs nvcc, no GPU.

    python -m benchmarks.kernel_resources        -> benchmarks/results/kernel-resources.json

Exit code 1: a warning, or a spill.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from pixelrt_kernels.build import compiler, device_options
from pixelrt_kernels.library import DEVICE, HERE, source_hash

RESULT = Path(__file__).parent / "results" / "kernel-resources.json"
ENTRY = re.compile(r"Compiling entry function '(?:pixelrt_)?(\w+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def compile_all(program: str) -> tuple[str, int]:
    """The compiler's words and the fat binary's size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.fatbin"
        command = [program, *device_options(program), "-Xptxas", "-v", "device.cu", "-o", str(out)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr, out.stat().st_size


def figures(words: str) -> dict[str, dict[str, dict[str, int]]]:
    """kernel -> GPU -> registers, shared memory (static, bytes), spilled bytes."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    entry: dict[str, int] = {}
    for line in words.splitlines():
        if match := ENTRY.search(line):
            entry = found.setdefault(match[1], {}).setdefault(f"sm_{match[2]}", {})
        elif match := SPILLS.search(line):
            entry["spilled_bytes"] = sum(map(int, match.groups()))
        elif match := USED.search(line):
            shared = SHARED.search(line)
            entry |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return found


def main() -> int:
    program = compiler(DEVICE)
    if program is None:
        raise SystemExit("nvcc is not at hand.")
    words, size = compile_all(program)
    kernels = figures(words)
    warnings = [line for line in words.splitlines() if "warning" in line]
    spilled = sum(gpu["spilled_bytes"] for gpus in kernels.values() for gpu in gpus.values())
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", version)
    record = {
        "nvcc": release[1] if release else version,
        "source": source_hash(DEVICE),
        "fat_binary_bytes": size,
        "warnings": len(warnings),
        "spilled_bytes": spilled,
        "kernels": kernels,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    gpus = sorted({gpu for each in kernels.values() for gpu in each}, key=lambda gpu: int(gpu[3:]))
    print(f"{'registers':24s}", *(f"{gpu:>7s}" for gpu in gpus), " shared")
    for name, each in sorted(kernels.items()):
        shared = max(one["shared_bytes"] for one in each.values())
        print(f"{name:24s}", *(f"{each[gpu]['registers']:7d}" for gpu in gpus), f"{shared:7d}")
    print(
        f"{len(warnings)} warnings, {spilled} bytes spilled; fat binary {size:,} bytes; wrote {RESULT.name}"
    )
    return 1 if warnings or spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
