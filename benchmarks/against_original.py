"""pixelrt against the original's procedure: same weights, same picture, same question, one interleaved run.

    python benchmarks/against_original.py CHECKPOINT [--tokens 12] [--rounds 5] [--json FILE]

The original (torch, fp32, written from its source: pixelrt_export/reference) has no cache: every token re-runs
CLIP, both projectors and the language model over the whole sequence. The runtime is ONNX Runtime on the fp32
bundle of the same checkpoint. Each round times both, in turn; reported are medians and the median of the ratios.
Both must give the same tokens and masks or there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pixelrt
import torch
from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.export import export_bundle
from pixelrt_export.reference.generate import Reference
from pixelrt_export.reference.pixellm import PixelLM
from pixelrt_export.vision_tower import find_vision_tower, open_vision_tower

QUESTION = "Can you segment the dog in this image?"


def load_reference(checkpoint: Path, seg_ids: list[int]) -> Reference:
    main = Checkpoint.open(checkpoint)
    clip = open_vision_tower(find_vision_tower(checkpoint, main.config))
    tensors, clip_tensors = (
        {key: c.tensor(key).astype(np.float32) for key in c.shapes()} for c in (main, clip)
    )
    return Reference(PixelLM.from_tensors(main.config, clip.config, tensors, clip_tensors), seg_ids)


def picture(height: int, width: int) -> np.ndarray:
    """A smooth coloured picture; what it shows does not change the work."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 127.5 * np.sin(x / 31 + i) * np.cos(y / 23 - i) for i in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seg = pixelrt.load(export_bundle(args.checkpoint, Path(scratch) / "bundle"))
        result = compare(seg, args.checkpoint, args.tokens, args.rounds)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(seg: pixelrt.Segmenter, checkpoint: Path, tokens: int, rounds: int) -> dict:
    reference = load_reference(checkpoint, list(seg.codebook.ids))
    ids, rgb = seg.prompt(QUESTION).input_ids(), picture(480, 640)

    def ours() -> tuple[pixelrt.Frame, pixelrt.Answer]:
        frame = seg.encode(rgb)
        return frame, seg.segment(frame, QUESTION, max_new_tokens=tokens)

    (frame, answer), original = ours(), None  # the first call is the warm-up
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        start = time.perf_counter()
        original = reference.generate(rgb, ids, max_new_tokens=len(answer.token_ids), procedure="original")
        middle = time.perf_counter()
        frame, answer = ours()
        times.append((middle - start, time.perf_counter() - middle))
        print(
            f"original {times[-1][0]:.2f} s, pixelrt {times[-1][1]:.2f} s, {times[-1][0] / times[-1][1]:.1f} x"
        )
    masks = (original.masks > 0).numpy()
    different = [int((m.mask != w).sum()) for m, w in zip(answer.masks, masks, strict=True)]
    if answer.token_ids != original.token_ids:
        raise SystemExit(f"answers differ: {answer.token_ids} and {original.token_ids}")
    ratios = sorted(a / b for a, b in times)
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "pixelrt": pixelrt.__version__,
        },
        "prompt_tokens": len(ids),
        "generated_tokens": len(answer.token_ids),
        "targets": len(answer.masks),
        "mask_pixels_different": different,
        "rounds": rounds,
        "original_s": round(statistics.median(a for a, _ in times), 3),
        "pixelrt_s": round(statistics.median(b for _, b in times), 3),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        "stages_ms": {name: round(value, 1) for name, value in {**frame.timing, **answer.timing}.items()},
    }


if __name__ == "__main__":
    main()
