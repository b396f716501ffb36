"""The runtime answers where torch, transformers and onnx cannot be imported, and adds little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
asked = json.loads(sys.argv[3])
answer = seg.segment(sys.argv[2], asked if isinstance(asked, str) else pixelrt.Classes(asked))
loaded = sorted(name for name in BLOCKED if name in sys.modules)
print(json.dumps({"labels": sorted(mask.label for mask in answer.masks), "ready_s": ready_s, "loaded": loaded,
                  "ready_bytes": ready - before, "answered_bytes": anonymous() - before}))
"""


@pytest.fixture(params=["pixellm-tiny", "psalm-tiny"])
def asked(request: pytest.FixtureRequest, class_names: list[str]) -> tuple[Path, str | list[str]]:
    """A bundle and what to ask it about the first sample: a question, or a list of classes."""
    if request.param == "psalm-tiny":
        return request.getfixturevalue("psalm_bundle"), class_names
    return request.getfixturevalue("tiny_bundle"), request.getfixturevalue("samples")[0][1]


def test_load_and_answer(
    root: Path, asked: tuple[Path, str | list[str]], samples: list[tuple[Path, str]]
) -> None:
    bundle, question = asked
    path = os.pathsep.join(str(root / folder) for folder in ("runtime", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle), str(samples[0][0]), json.dumps(question)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    weights = (bundle / "weights.data").stat().st_size
    print(
        f"{bundle.name}: import to ready {said['ready_s']:.2f} s; above the {weights / 1e6:.1f} MB of weights: "
        f"{(said['ready_bytes'] - weights) / 1e6:.0f} MB when ready, "
        f"{(said['answered_bytes'] - weights) / 1e6:.0f} MB after one answer"
    )
    assert said["loaded"] == []
    assert {"red circle", "blue star"} <= set(said["labels"])
    assert said["ready_bytes"] - weights < MEMORY_LIMIT
