"""What each precision costs: bytes, and how far its answers are from fp32's on scenes that nobody trained on.

    python -m benchmarks.precision CHECKPOINT [--scenes 300] [--json FILE] [--scratch DIR] [--precisions 'int8;int4']

CHECKPOINT is one of the small models of this repository. Every bundle is exported without its gate, calibrated on
calib_data, and asked the same questions as the fp32 bundle: paired, since a task score of a small model says less
about rounding than about its questions. Same answer: token for token (PixelLM); the same classes of a panoptic
answer, or a sentence's mask with IoU > 0.5 (PSALM). Mask IoU: of each mask with fp32's, where the answers are the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from pixelrt.evaluation.measures import iou
from pixelrt.queries import Classes, Refer
from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.tiny.evaluate import LONG_SIDES, SEED_BASE
from pixelrt_export.tiny.pixellm_exam import questions_about
from pixelrt_export.tiny.psalm_prompts import MIX, NAMES, sentence
from pixelrt_export.tiny.scenes import scene

MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Setting:
    name: str
    precision: str
    settings: Settings


SETTINGS = (
    Setting("fp32", "fp32", Settings()),
    Setting("fp16", "fp16", Settings()),
    Setting("int8", "int8", Settings()),
    Setting("int4", "int4", Settings()),
    Setting("int4, block 64", "int4", Settings(block=64)),
    Setting("int4, block 128", "int4", Settings(block=128)),
    Setting("int4, nearest steps", "int4", Settings(calibrated=False)),
    Setting("int4, head in int8", "int4", Settings(head="int8")),
    Setting("int4, head in int4", "int4", Settings(head="int4")),
    Setting("nf4", "nf4", Settings()),
)
# One answer: what must be the same, and the masks.
Reply = tuple[Any, list[np.ndarray]]


def pixellm_replies(segmenter: Any, scenes: int) -> Iterator[Reply]:
    for seed in range(SEED_BASE, SEED_BASE + scenes):
        drawn = scene(seed)
        frame = segmenter.encode(drawn.image)
        for asked in questions_about(drawn, seed):
            answer = segmenter.segment(frame, asked.text, MAX_NEW_TOKENS)
            yield [int(i) for i in answer.token_ids], [mask.mask for mask in answer.masks]


def psalm_replies(segmenter: Any, scenes: int) -> Iterator[Reply]:
    for seed in range(SEED_BASE, SEED_BASE + scenes):
        drawn = scene(seed, LONG_SIDES["psalm"])
        frame = segmenter.encode(drawn.image)
        answer = segmenter.segment(frame, Classes(NAMES))
        found = sorted(answer.segments, key=lambda s: (s.category, s.box or ()))
        yield [s.category for s in found], [answer.label_map == s.id for s in found]
        for kind in MIX:
            asked = sentence(drawn.things, random.Random(f"{seed} {kind}"), kind)
            if asked is not None and kind not in ("several", "none"):
                yield None, [segmenter.segment(frame, Refer(asked.texts[0])).masks[0].mask]


REPLIES = {"llava": pixellm_replies, "llava_phi": psalm_replies}


def compared(replies: Iterator[Reply], base: list[Reply]) -> dict[str, Any]:
    same, ious = [], []
    for (words, masks), (wanted, truth) in zip(replies, base, strict=True):
        values = [iou(np.asarray(a), np.asarray(b)) for a, b in zip(masks, truth, strict=False)]
        alike = words == wanted and len(masks) == len(truth)
        same.append(alike and (words is not None or min(values) > 0.5))
        ious += values if same[-1] else []
    return {
        "questions": len(same),
        "same_answer": round(float(np.mean(same)), 4),
        "masks": len(ious),
        "mask_iou": round(float(np.mean(ious)), 4) if ious else None,
        "mask_iou_5_percent": round(float(np.quantile(ious, 0.05)), 4) if ious else None,
    }


def measure(checkpoint: Path, scenes: int, scratch: Path, chosen: list[Setting]) -> dict[str, Any]:
    replies = REPLIES[str(Checkpoint.open(checkpoint).config["model_type"])]
    rows: dict[str, Any] = {}
    base: list[Reply] = []
    for setting in chosen:
        bundle = scratch / setting.name.replace(", ", "-").replace(" ", "-")
        start = time.perf_counter()
        export_bundle(checkpoint, bundle, precision=setting.precision, settings=setting.settings)
        seconds = time.perf_counter() - start
        found = replies(pixelrt.load(bundle), scenes)
        if not base:
            base = [(words, [np.array(mask) for mask in masks]) for words, masks in found]
            found = iter(base)
        size = sum(file.stat().st_size for file in bundle.iterdir())
        weights = (bundle / "weights.data").stat().st_size
        rows[setting.name] = {
            "bytes": size,
            "weight_bytes": weights,
            "export_s": round(seconds, 1),
            **compared(found, base),
        }
        print(json.dumps({setting.name: rows[setting.name]}), flush=True)
    return rows


def table(rows: dict[str, Any]) -> str:
    lines = ["| precision | bundle | same answer as fp32 | mask IoU with fp32 |", "|---|---|---|---|"]
    for name, row in rows.items():
        if name != "fp32":
            lines.append(
                f"| {name} | {row['bytes'] / 1e6:.1f} MB | {row['same_answer']:.1%} | {row['mask_iou']:.4f} |"
            )
        else:
            lines.append(f"| fp32 | {row['bytes'] / 1e6:.1f} MB | – | – |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--precisions", help="of the table's names, separated by ;")
    parser.add_argument("--scratch", type=Path, help="where bundles go; removed afterwards by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = args.precisions.split(";") if args.precisions else [s.name for s in SETTINGS]
    unknown = set(names) - {s.name for s in SETTINGS}
    if unknown:
        parser.error(f"no precision {sorted(unknown)[0]!r}. Choose of: {'; '.join(s.name for s in SETTINGS)}")
    chosen = [s for s in SETTINGS if s.name in {"fp32", *names}]
    if find_spec("bitsandbytes") is None:
        chosen = [s for s in chosen if s.precision != "nf4"]  # needs the nf4 extra
    if Checkpoint.open(args.checkpoint).config["model_type"] == "llava_phi":
        chosen = [s for s in chosen if not s.settings.head]  # PSALM has none
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.checkpoint, args.scenes, args.scratch or Path(folder), chosen)
    print(table(rows))
    if args.json:
        about = {
            "checkpoint": args.checkpoint.name,
            "scenes": args.scenes,
            "machine": platform.machine(),
            "command": f"python -m benchmarks.precision checkpoints/{args.checkpoint.name} --scenes {args.scenes}",
        }
        args.json.write_text(json.dumps({**about, "precisions": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
