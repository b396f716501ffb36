"""The runtime answers where torch, transformers and onnx cannot be imported, and adds little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MEMORY_LIMIT = 150e6  # bytes above the weights, of which ONNX Runtime keeps one copy

# Prints one JSON line. Memory is what the process holds for itself; files that are only mapped do not count.
PROGRAM = """
import json, sys, time

BLOCKED = ("torch", "transformers", "onnx", "optimum", "safetensors", "sentencepiece", "pixelrt_export")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)

sys.meta_path.insert(0, Refuse())

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

start, before = time.perf_counter(), anonymous()
import pixelrt
seg = pixelrt.load(sys.argv[1])
ready_s, ready = time.perf_counter() - start, anonymous()
answer = seg.segment(sys.argv[2], sys.argv[3])
loaded = sorted(name for name in BLOCKED if name in sys.modules)
print(json.dumps({"text": answer.text, "masks": len(answer.masks), "ready_s": ready_s, "loaded": loaded,
                  "ready_bytes": ready - before, "answered_bytes": anonymous() - before}))
"""


def test_load_and_answer(root: Path, tiny_bundle: Path, samples: list[tuple[Path, str]]) -> None:
    picture, question = samples[0]
    path = os.pathsep.join(str(root / folder) for folder in ("runtime", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle), str(picture), question],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    weights = (tiny_bundle / "weights.data").stat().st_size
    print(
        f"import to ready {said['ready_s']:.2f} s; above the {weights / 1e6:.1f} MB of weights: "
        f"{(said['ready_bytes'] - weights) / 1e6:.0f} MB when ready, "
        f"{(said['answered_bytes'] - weights) / 1e6:.0f} MB after one answer"
    )
    assert said["loaded"] == []
    assert said["text"]
    assert said["ready_bytes"] - weights < MEMORY_LIMIT
