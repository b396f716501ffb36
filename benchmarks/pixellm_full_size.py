"""PixelLM at its released sizes with random weights: export in int4, then one question on the CPU.

    python benchmarks/pixellm_full_size.py SCRATCH [--size 7b|13b] [--layers N] [--precision int4] [--json FILE]

SCRATCH needs 20 GB of disk for 7b and 36 GB for 13b. --layers cuts the language model's depth. The checkpoint is
random_checkpoint.py's, whose lm_head is fitted so that the answer holds one target. Export is without its gate, which
runs the bundle and so needs the bundle's memory too. Memory is the largest anonymous memory of the process, sampled
every 20 ms; files that are only mapped do not count. Each half runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from psalm_full_size import measured

SIZES = {
    "7b": {"hidden": 4096, "heads": 32, "intermediate": 11008, "layers": 32},
    "13b": {"hidden": 5120, "heads": 40, "intermediate": 13824, "layers": 40},
    "small": {"hidden": 256, "heads": 4, "intermediate": 704, "layers": 2},  # to try the script
}
QUESTION = "Can you segment the dog in this image?"


def write_checkpoint(folder: Path, size: str, layers: int | None) -> None:
    script = Path(__file__).with_name("random_checkpoint.py")
    options = SIZES[size] | ({"layers": layers} if layers else {})
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(script), str(folder), *flags], check=True)


def export(scratch: Path, precision: str) -> dict:
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    settings = Settings(
        progress=lambda what, done, total: print(f"{what}: {done} of {total}", file=sys.stderr)
    )
    bundle = export_bundle(
        scratch / "checkpoint" / "pixellm", scratch / "bundle", precision=precision, settings=settings
    )
    return {"bundle_gb": round(sum(file.stat().st_size for file in bundle.iterdir()) / 1e9, 2)}


def answer(scratch: Path, precision: str) -> dict:
    import pixelrt

    seg = pixelrt.load(scratch / "bundle")
    y, x = np.mgrid[0:480, 0:640]
    waves = [127 + 127 * np.sin(x / 31 + i) * np.cos(y / 23 - i) for i in range(3)]
    frame = seg.encode(np.stack(waves, -1).astype(np.uint8))
    result = seg.segment(frame, QUESTION, max_new_tokens=24)
    times = {name: round(ms) for name, ms in {**frame.timing, **result.timing}.items()}
    return {"text": result.text, "masks": len(result.masks), "stages_ms": times}


HALVES = {"export": export, "answer": answer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--half", choices=HALVES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.half:
        print(json.dumps(measured(lambda: HALVES[args.half](args.scratch, args.precision))))
        return
    if not (args.scratch / "checkpoint").exists():
        write_checkpoint(args.scratch / "checkpoint", args.size, args.layers)
    result: dict = {"size": args.size, "layers": args.layers or SIZES[args.size]["layers"]}
    for half in HALVES:
        command = [sys.executable, __file__, str(args.scratch), "--half", half, "--precision", args.precision]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[half] = json.loads(done.stdout.splitlines()[-1])
        print(half, result[half], flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
