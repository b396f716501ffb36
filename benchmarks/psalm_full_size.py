"""PSALM at its released size with random weights: export in fp16, golden outputs, a panoptic query with 133 classes.

    python benchmarks/psalm_full_size.py SCRATCH [--json FILE]

needs 10 GB of disk in SCRATCH. Names and shapes are those of the released checkpoint (tests/golden/psalm); the
tokenizer is the golden one, which cuts words smaller than the real one. Memory is the largest anonymous memory of the
process, sampled every 20 ms; files that are only mapped do not count. Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "psalm"
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "vocab_size": 50297,
    "image_size": 1024,
    "mm_input_embeds": 1024,
    "mm_hidden_size": 256,
    "projector_outdim": 2048,
}
HALVES = ("export", "goldens", "answer")


def write_checkpoint(folder: Path, kept: Callable[[str], bool] = lambda name: True) -> None:
    """The golden checkpoint's files with weights of the released shapes in place of its own. kept: names to write."""
    from random_checkpoint import random_tensor, shards

    runpy.run_path(str(GOLDEN / "make_checkpoint.py"))["write_checkpoint"](folder)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SIZES))
    shapes = json.loads((GOLDEN / "real_keys.json").read_text())

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in ((name, shape) for name, shape in shapes.items() if kept(name)):
            if name.endswith("relative_position_index"):
                yield name, relative_positions(round(shape[0] ** 0.5))
            elif name.endswith("num_batches_tracked"):
                yield name, np.zeros(shape, np.int64)
            elif name.endswith("running_var"):
                yield name, np.ones(shape, np.float32)
            else:
                yield name, random_tensor(name, tuple(shape)).astype(np.float32)

    shards(tensors(), folder)


def relative_positions(window: int) -> np.ndarray:
    """Row of the bias table for each pair of places in a window, (w * w, w * w)."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    apart = (places[:, :, None] - places[:, None, :]) + window - 1
    return (apart[0] * (2 * window - 1) + apart[1]).astype(np.int64)


def measured(work: Callable[[], dict]) -> dict:
    """What `work` returns, its seconds, and the peak of this process's anonymous memory."""
    peak, running = [0], [True]

    def watch() -> None:
        while running[0]:
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], next(int(x.split()[1]) << 10 for x in lines if x.startswith("RssAnon")))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        about = work()
    finally:
        running[0] = False
        watcher.join()
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak[0] / 1e9, 2), **about}


def export(scratch: Path) -> dict:
    from pixelrt_export.export import export_bundle

    bundle = export_bundle(scratch / "checkpoint", scratch / "bundle", precision="fp16")
    return {"bundle_gb": round(sum(file.stat().st_size for file in bundle.iterdir()) / 1e9, 2)}


def goldens(scratch: Path) -> dict:
    """As `pixelrt export` does at its end; the bundle's manifest is left alone."""
    from pixelrt.goldens.make import make_goldens

    made = make_goldens(scratch / "bundle")
    return {"mb": round((scratch / "bundle" / made["file"]).stat().st_size / 1e6, 2)}


def answer(scratch: Path) -> dict:
    import pixelrt
    from pixelrt.queries import Classes

    seg = pixelrt.load(scratch / "bundle")
    y, x = np.mgrid[0:720, 0:1280]
    waves = [127 + 127 * np.sin(x / 31 + i) * np.cos(y / 23 - i) for i in range(3)]
    frame = seg.encode(np.stack(waves, -1).astype(np.uint8))
    result = seg.segment(frame, Classes([f"class{i}" for i in range(133)]))
    return {"stages_ms": {name: round(ms) for name, ms in {**frame.timing, **result.timing}.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--half", choices=HALVES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.half:
        work = {"export": export, "goldens": goldens, "answer": answer}[args.half]
        print(json.dumps(measured(lambda: work(args.scratch))))
        return
    if not (args.scratch / "checkpoint").exists():
        write_checkpoint(args.scratch / "checkpoint")
    result: dict = {}
    for half in HALVES:
        command = [sys.executable, __file__, str(args.scratch), "--half", half]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result[half] = json.loads(done.stdout.splitlines()[-1])
        print(half, result[half])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
