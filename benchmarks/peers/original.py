"""pixelrt against the original's procedure in torch: same weights, same picture, same question, one interleaved
run.

    python -m benchmarks.peers.original SCRATCH [--layers 4] [--width 4096] [--precision int4]
                                        [--dtype float32|bfloat16|nf4] [--targets 1|5] [--checkpoint DIR] [--smoke] ...

Writes a PixelLM of that size with CLIP-L/14 at 448 px and random weights that int4 does not change, and exports it;
or takes DIR. It answers with one target in every twelve tokens, and is cut off behind the last one wanted.

The original, written from its source (pixelrt_export/reference): every token runs CLIP, both projectors, all layers
and the head over the whole sequence, for it has no cache; CLIP and the projectors once more, then the masks. Where
the reference differs it does less: attention is fused, CLIP's last layer, which nobody reads, and the mask
decoder's dead heads are left out. nf4: bitsandbytes in place of all linear layers but CLIP's, as its
--load_in_4bit. As a step keeps nothing, the time of an answer is that of its parts: --steps N times N of its steps,
spread evenly, and counts them for all (0: every one).

pixelrt is the runtime on ONNX Runtime's CPU provider: a new picture and a question about it, then a second question
about the same picture. Answers are not drafted, but for a mask's tokens after its first: a random model's words are
in no template.

Each step of the original reads pixelrt's answer up to there, and says which token it would choose: in float32 all
of them must be the same. Wanted in float32: 15 times faster for one target, 50 times for five, the second question
in less than half the time of the first. SCRATCH keeps checkpoint and bundle; --prepare writes them and ends.
--smoke: the shipped small model.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import torch
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.evaluation.measures import iou
from pixelrt.families.pixellm import PixelLM as Segmenter
from pixelrt.image import open_image
from pixelrt.segmenter import open_bundle
from pixelrt_export.export import MENU, export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.reference.generate import Generation, Reference

from benchmarks.peers.grid import OUR_PEAK, on_grid
from benchmarks.peers.packages import NF4, beside
from benchmarks.peers.procedure import load_reference, original
from benchmarks.peers.random_llama import Size
from benchmarks.peers.turns import RESULTS, Times, about, in_turn, markdown, ratio, said, written
from benchmarks.random_checkpoint import random_tensor, write_checkpoint

QUESTIONS = "Can you segment the dog in this image?", "Can you segment the dog?"
SMALL_QUESTIONS = "Segment the blue star.", "Segment the red circle."  # of the small model's pictures
TOKENS_PER_TARGET = 12
WANTED = {1: 15, 5: 50}
ROOT = Path(__file__).resolve().parents[2]


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    weight = random_tensor(name, shape)
    rounded = name.startswith("model.layers.") and len(shape) == 2
    return on_grid(weight, OUR_PEAK) if rounded else weight


def written_checkpoint(scratch: Path, width: int, layers: int) -> Path:
    folder = scratch / f"checkpoint-{width}x{layers}"
    if not folder.is_dir():
        partial = scratch / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        print(f"{folder.name}: writing random weights", flush=True)
        size = Size(width, layers)
        write_checkpoint(
            partial,
            hidden=width,
            layers=layers,
            heads=width // size.head_dim,
            intermediate=size.intermediate,
            weight=random_weight,
            endless=True,
        )
        partial.rename(folder)
    return folder / "pixellm"


def load_bundle(checkpoint: Path, bundle: Path, precision: str, threads: int) -> Segmenter:
    if not bundle.is_dir():
        print(f"{bundle.name}: exporting", flush=True)
        export_bundle(checkpoint, bundle, precision=precision, settings=Settings(calibrated=False))
    read = Bundle.read(bundle)
    segmenter: Any = open_bundle(read, OrtBackend(read, threads=threads))
    if not isinstance(segmenter, Segmenter):
        raise SystemExit(f"{checkpoint} is no PixelLM")
    segmenter.drafts = None
    return segmenter


def picture(height: int = 480, width: int = 640) -> np.ndarray:
    """A smooth coloured picture; what it shows does not change the work."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 127.5 * np.sin(x / 31 + i) * np.cos(y / 23 - i) for i in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def ours(
    segmenter: Segmenter, rgb: np.ndarray, questions: Sequence[str], tokens: int
) -> tuple[Times, pixelrt.Answer]:
    start = time.perf_counter()
    frame = segmenter.encode(rgb)
    answer = segmenter.segment(frame, questions[0], max_new_tokens=tokens)
    middle = time.perf_counter()
    segmenter.segment(frame, questions[1], max_new_tokens=tokens)
    return {"answer": middle - start, "second": time.perf_counter() - middle}, answer


def compare(segmenter: Segmenter, reference: Reference, args: argparse.Namespace) -> dict[str, Any]:
    tokens, questions = args.tokens, SMALL_QUESTIONS if args.smoke else QUESTIONS
    rgb = open_image(ROOT / "calib_data" / "scene_01.png") if args.smoke else picture()
    prompt = segmenter.prompt(questions[0]).input_ids()
    _, answer = ours(segmenter, rgb, questions, tokens)  # warms up, and says what the original is asked about
    if len(answer.masks) != args.targets and not args.checkpoint:
        raise SystemExit(f"the answer has {len(answer.masks)} targets: {answer.text}")
    agreed: list[bool] = []
    found: list[Generation] = []

    def theirs() -> Times:
        times, agree, drawn = original(reference, rgb, prompt, answer.token_ids, args.steps)
        agreed.extend(agree)
        found[:] = [drawn]
        return times

    with torch.inference_mode():
        reference.step(*reference.pixels(rgb), prompt)  # warm-up
    ways = {"pixelrt": lambda: ours(segmenter, rgb, questions, tokens)[0], "original": theirs}
    times = in_turn(ways, args.rounds, args.minutes)
    if args.dtype == "float32" and not all(agreed):
        raise SystemExit(f"the original says something else in {agreed.count(False)} of {len(agreed)} steps")
    masks = (found[-1].masks.float() > 0).numpy()
    pairs = [(mine.mask, other) for mine, other in zip(answer.masks, masks, strict=True)]
    first, second = ([each[what] for each in times["pixelrt"]] for what in ("answer", "second"))
    slow = [each["answer"] for each in times["original"]]
    faster, again, half = ratio(slow, first), ratio(slow, second), ratio(second, first)
    wanted = WANTED.get(args.targets, "–") if args.dtype == "float32" and not args.checkpoint else "–"
    rows = [
        [f"original, {args.dtype}", said(slow), "", ""],
        [f"pixelrt, {args.precision}", said(first), f"{faster} times faster", f"{wanted} times"],
        ["pixelrt, second question", said(second), f"{again} times faster", ""],
        ["second question over first", "", str(half), "below 0.5"],
    ]
    print("\n" + markdown(["an answer", "median (range)", "ratio (range)", "wanted"], rows))
    print(
        f"\n{len(answer.token_ids)} tokens, {len(answer.masks)} targets, prompt of {len(prompt)} ids",
        end="; ",
    )
    print(f"the original chose {agreed.count(True)} of {len(agreed)} tokens the same; ", end="")
    different = [int((a != b).sum()) for a, b in pairs]
    print(f"mask pixels different: {different} of {rgb.shape[0] * rgb.shape[1]}")
    return {
        "prompt_ids": len(prompt),
        "generated_tokens": len(answer.token_ids),
        "targets": len(answer.masks),
        "forwards": answer.decoding.forwards if answer.decoding else None,
        "steps_timed": args.steps or len(answer.token_ids),
        "steps_agreed": [agreed.count(True), len(agreed)],
        "mask_pixels_different": different,
        "mask_iou": [round(float(iou(a, b)), 4) for a, b in pairs],
        "times_faster": faster,
        "times_faster_second_question": again,
        "second_over_first": half,
        "stages_ms": {name: round(value, 1) for name, value in answer.timing.items()},
        "times_s": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--precision", choices=MENU, default="int4", help="of the bundle")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "nf4"), default="float32")
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--json", type=Path, help="default, without --checkpoint: benchmarks/results/original-….json"
    )
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    scratch = args.scratch.resolve()
    if args.smoke:
        args.checkpoint, args.rounds = ROOT / "checkpoints" / "pixellm-tiny", 1
    # A model that was trained ends its answer itself.
    args.tokens = 64 if args.checkpoint else TOKENS_PER_TARGET * args.targets
    torch.set_num_threads(args.threads)
    if args.dtype == "nf4":
        beside(scratch / "packages", *NF4)
    state = about("torch", "bitsandbytes")
    name = args.checkpoint.name if args.checkpoint else f"{args.width}x{args.layers}"
    checkpoint = args.checkpoint or written_checkpoint(scratch, args.width, args.layers)
    segmenter = load_bundle(
        checkpoint, scratch / f"bundle-{name}-{args.precision}", args.precision, args.threads
    )
    if args.prepare:
        return
    reference = load_reference(checkpoint, list(segmenter.codebook.ids), args.dtype)
    asked = {key: getattr(args, key) for key in ("precision", "dtype", "threads")}
    document = {**state, "model": name, **asked, **compare(segmenter, reference, args)}
    place = RESULTS / f"original-{name}-{args.precision}-{args.dtype}-{args.targets}.json"
    written(document, args.json or (None if args.checkpoint else place))


if __name__ == "__main__":
    main()
