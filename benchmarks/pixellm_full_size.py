"""PixelLM at its released sizes with random weights: export in int4, then one question on the CPU.

    python benchmarks/pixellm_full_size.py SCRATCH [--size 7b|13b] [--layers N] [--block 128] [--nearest] [--gate]

Runs unattended, and goes on where it was when it is stopped and started again with the same SCRATCH and options: each
stage is written down when it ends, and an export that was stopped resumes. SCRATCH needs 20 GB of disk for 7b and
36 GB for 13b; the checkpoint is deleted when nothing needs it any more (--keep keeps it). --layers cuts the language
model's depth. --block: of int4; 32, which export takes by default, needs about 8 GB of memory for 7b's answer
(extrapolated). --nearest rounds to nearest steps, without pictures. --gate checks the bundle on the calibration
pictures, a layer at a time; with two questions that takes 7b most of an hour. The checkpoint is random_checkpoint.py's,
whose lm_head is fitted so that the answer holds one target.

Each stage runs in a process of its own. Memory is the largest anonymous memory of that process, sampled every 20 ms;
files that are only mapped do not count. Written: bytes given to write().
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from psalm_full_size import measured

SIZES = {
    "7b": {"hidden": 4096, "heads": 32, "intermediate": 11008, "layers": 32},
    "13b": {"hidden": 5120, "heads": 40, "intermediate": 13824, "layers": 40},
    "small": {"hidden": 256, "heads": 4, "intermediate": 704, "layers": 2},  # to try the script
}
QUESTION = "Can you segment the dog in this image?"
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Run:
    scratch: Path
    size: str
    layers: int | None
    precision: str
    block: int
    nearest: bool
    calib: Path | None
    gate: bool
    keep: bool
    json: Path | None

    @property
    def depth(self) -> int:
        return self.layers or SIZES[self.size]["layers"]

    @property
    def checkpoint(self) -> Path:
        return self.scratch / "checkpoint"

    @property
    def options(self) -> dict:
        how = "nearest" if self.nearest else "calibrated"
        return {
            "size": self.size,
            "layers": self.depth,
            "precision": self.precision,
            "block": self.block,
            "rounding": how,
        }


# ---- stages: what each returns goes into the result ---------------------------------------------------------


def write_checkpoint(run: Run) -> dict:
    from random_checkpoint import write_checkpoint

    partial = run.scratch / "checkpoint.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_checkpoint(partial, **SIZES[run.size] | {"layers": run.depth})
    partial.rename(run.checkpoint)
    return {"gb": gigabytes(*run.checkpoint.iterdir())}


def export(run: Run) -> dict:
    from pixelrt.cli.progress import ProgressLine
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    resumed = (run.scratch / ".bundle.partial").exists()
    before = written()
    with ProgressLine() as progress:
        settings = Settings(run.calib, run.block, not run.nearest, progress=progress)
        checkpoint = run.checkpoint / "pixellm"
        bundle = export_bundle(
            checkpoint, run.scratch / "bundle", precision=run.precision, settings=settings, note=say
        )
    size = gigabytes(bundle)
    return {"bundle_gb": size, "written_gb": round((written() - before) / 1e9, 2), "resumed": resumed}


def goldens(run: Run) -> dict:
    """As `pixelrt export` does at its end; the bundle's manifest is left alone."""
    from pixelrt.goldens.make import make_goldens

    made = make_goldens(run.scratch / "bundle")
    return {"mb": round((run.scratch / "bundle" / made["file"]).stat().st_size / 1e6, 2)}


def gate(run: Run) -> dict:
    """`pixelrt verify`: the judge reads the checkpoint a layer at a time."""
    from pixelrt.cli.progress import ProgressLine
    from pixelrt_export.quantize.records import read_records
    from pixelrt_export.verify.bundle import open_original, verify_bundle

    original = open_original(run.checkpoint / "pixellm")
    with ProgressLine() as progress:
        report = verify_bundle(run.scratch / "bundle", original, read_records(run.calib), None, progress)
    return report.summary()


def answer(run: Run) -> dict:
    import pixelrt

    seg = pixelrt.load(run.scratch / "bundle")
    y, x = np.mgrid[0:480, 0:640]
    waves = [127 + 127 * np.sin(x / 31 + i) * np.cos(y / 23 - i) for i in range(3)]
    frame = seg.encode(np.stack(waves, -1).astype(np.uint8))
    result = seg.segment(frame, QUESTION, max_new_tokens=24)
    times = {name: round(ms) for name, ms in {**frame.timing, **result.timing}.items()}
    return {"text": result.text, "masks": len(result.masks), "stages_ms": times}


STAGES: dict[str, Callable[[Run], dict]] = {
    "checkpoint": write_checkpoint,
    "export": export,
    "goldens": goldens,
    "gate": gate,
    "answer": answer,
}


# ---- the run ------------------------------------------------------------------------------------------------


def gigabytes(*folders: Path) -> float:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e9, 2)


def written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} threads, {memory:.0f} GB"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def carry_out(run: Run, arguments: list[str]) -> dict:
    """All stages that are still to be done."""
    from importlib.metadata import version

    run.scratch.mkdir(parents=True, exist_ok=True)
    state = run.scratch / "state.json"
    done = json.loads(state.read_text()) if state.exists() else {}
    if done.get("options", run.options) != run.options:
        raise SystemExit(
            f"{run.scratch} holds a run of {done['options']}. Give another folder, or delete it."
        )
    done = {"options": run.options, "machine": machine(), "onnxruntime": version("onnxruntime")} | done
    for name in STAGES:
        if name in done or (name == "gate" and not run.gate):
            continue
        say(f"{name} begins")
        start = time.monotonic()
        command = [sys.executable, __file__, *arguments, "--stage", name]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        done[name] = json.loads(ended.stdout.splitlines()[-1])
        state.write_text(json.dumps(done, indent=1) + "\n")
        say(f"{name} took {time.monotonic() - start:.0f} s: {done[name]}")
        if name == ("gate" if run.gate else "export") and not run.keep:
            shutil.rmtree(run.checkpoint)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--block", type=int, choices=(32, 64, 128), default=128)
    parser.add_argument("--nearest", action="store_true")
    parser.add_argument("--calib", type=Path, help="folder of pictures (default: calib_data)")
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--keep", action="store_true", help="the checkpoint")
    parser.add_argument(
        "--json", type=Path, help="default, of a whole model: benchmarks/results/pixellm-SIZE-….json"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = vars(parser.parse_args())
    stage = args.pop("stage")
    run = Run(**args)
    if stage:
        print(json.dumps(measured(lambda: STAGES[stage](run))))
        return
    done = carry_out(run, sys.argv[1:])
    how = "-nearest" if run.nearest else ""
    place = run.json or (None if run.layers else RESULTS / f"pixellm-{run.size}-{run.precision}{how}.json")
    if place:
        place.write_text(json.dumps(done, indent=1) + "\n")
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
