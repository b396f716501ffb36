"""Score a tiny model on scenes it never saw: exact answers, mask IoU, refusals, by kind of question.

python -m pixelrt_export.tiny.evaluate BUNDLE_OR_CHECKPOINT [--scenes 500] [--seed-base N]
    [--long-side 140] [--against MODEL] [--json FILE]

A checkpoint runs through the torch reference, a bundle through the runtime. Each scene is asked one question
of each kind that it allows. IoU is a mean over targets, paired in order; a missing or surplus mask counts 0.
Standard errors take the questions about one scene as one observation.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixelrt_export.tiny.looks import FLAT
from pixelrt_export.tiny.questions import KINDS, Question, question
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import LONG_SIDE, Scene

SEED_BASE = 900_000_000  # training draws from 0
GROUPS = FLAT.groups()
MAX_NEW_TOKENS = 96  # five masks and the words around them take under 60


@dataclass(frozen=True)
class Reply:
    ids: list[int]  # without eos
    text: str  # with [SEG] where a mask stands
    masks: np.ndarray  # (N, H, W) bool


Answerer = Callable[[np.ndarray, str], Reply]


@dataclass(frozen=True)
class Asked:
    """One question put to one model."""

    group: str
    seed: int
    question: Question
    truth: np.ndarray  # (targets, H, W) bool
    reply: Reply

    @property
    def exact(self) -> bool:
        return self.reply.text == self.question.answer

    def ious(self) -> list[float]:
        paired = min(len(self.truth), len(self.reply.masks))
        ious = [iou(a, b) for a, b in zip(self.truth[:paired], self.reply.masks[:paired], strict=True)]
        return ious + [0.0] * (max(len(self.truth), len(self.reply.masks)) - paired)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Two empty masks agree."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def reference_answerer(folder: Path) -> Answerer:
    """The torch reference, on one thread a call as PyTorch is set."""
    from pixelrt_export.reference.generate import EOS_ID, Reference
    from pixelrt_export.tiny.checkpoint import read_checkpoint

    net, tokenizer = read_checkpoint(folder)
    reference = Reference(net, tokenizer.seg_ids)

    def answer(image: np.ndarray, text: str) -> Reply:
        out = reference.generate(image, tokenizer.prompt(text), MAX_NEW_TOKENS)
        ids = [i for i in out.token_ids if i != EOS_ID]
        return Reply(ids, tokenizer.text(ids), out.masks.numpy() > 0)

    return answer


def bundle_answerer(folder: Path) -> Answerer:
    """The runtime; the frame of the last image is kept, as an application would."""
    import pixelrt

    segmenter = pixelrt.load(folder)
    last: list = [None, None]

    def answer(image: np.ndarray, text: str) -> Reply:
        if last[0] is not image:
            last[:] = image, segmenter.encode(image)
        out = segmenter.segment(last[1], text, max_new_tokens=MAX_NEW_TOKENS)
        masks = [np.asarray(m.mask, bool) for m in out.masks]
        ids = [int(i) for i in out.token_ids]
        ids = ids[:-1] if ids and ids[-1] == 2 else ids
        return Reply(ids, out.text, np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool))

    return answer


def answerer(folder: Path) -> Answerer:
    return bundle_answerer(folder) if (folder / "manifest.json").exists() else reference_answerer(folder)


def questions_about(drawn: Scene, seed: int) -> Iterator[Question]:
    """One question of each kind; a scene of plain objects only has no texture question."""
    for kind in KINDS:
        asked = question(drawn.things, random.Random(f"{seed} {kind}"), kind)
        if asked.kind == kind:
            yield asked


def ask(answer: Answerer, scenes: int, seed_base: int, long_side: int) -> Iterator[Asked]:
    """`scenes` scenes of the held-out seeds and a quarter as many on the held-out backgrounds."""
    for group, photographs in GROUPS.items():
        for k in range(scenes if group == "held-out seeds" else -(-scenes // 4)):
            seed = seed_base + k
            drawn = scene(seed, long_side, photographs)
            for asked in questions_about(drawn, seed):
                truth = np.array([drawn.mask(t) for t in asked.targets]).reshape(-1, *drawn.labels.shape)
                yield Asked(group, seed, asked, truth, answer(drawn.image, asked.text))


def mean_and_error(values: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Mean of (seed, value) pairs, and its standard error with the values of one seed as one cluster."""
    if not values:
        return None
    mean = sum(v for _, v in values) / len(values)
    residuals: dict[int, float] = {}
    for seed, v in values:
        residuals[seed] = residuals.get(seed, 0.0) + v - mean
    return round(mean, 4), round(math.sqrt(sum(r * r for r in residuals.values())) / len(values), 4)


def summary(asked: Sequence[Asked]) -> dict:
    """exact, iou, iou_where_exact, refused: [mean, standard error] or null."""
    with_targets = [a for a in asked if len(a.truth)]
    return {
        "questions": len(asked),
        "targets": sum(len(a.truth) for a in asked),
        "exact": mean_and_error([(a.seed, float(a.exact)) for a in asked]),
        "iou": mean_and_error([(a.seed, v) for a in with_targets for v in a.ious()]),
        "iou_where_exact": mean_and_error([(a.seed, v) for a in with_targets if a.exact for v in a.ious()]),
        "refused": mean_and_error(
            [(a.seed, float(not len(a.reply.masks))) for a in asked if not len(a.truth)]
        ),
    }


def report(asked: Sequence[Asked]) -> dict:
    """Per group: all questions, then by kind."""
    tables = {}
    for group in GROUPS:
        ours = [a for a in asked if a.group == group]
        tables[group] = {"all": summary(ours)} | {
            kind: summary([a for a in ours if a.question.kind == kind]) for kind in KINDS
        }
    return tables


def agreement(asked: Sequence[Asked], others: Sequence[Asked]) -> dict:
    """How far two models answer alike: token for token, and mask against mask where the tokens agree."""
    pairs = list(zip(asked, others, strict=True))
    same = [(a, b) for a, b in pairs if a.reply.ids == b.reply.ids]
    masks = [
        (x, y) for a, b in same for x, y in zip(a.reply.masks, b.reply.masks, strict=True)
    ]  # same tokens, so as many masks
    ious = [iou(x, y) for x, y in masks]
    return {
        "questions": len(pairs),
        "same_tokens": round(len(same) / max(1, len(pairs)), 4),
        "masks": len(masks),
        "mask_iou_mean": round(float(np.mean(ious)), 5) if ious else None,
        "mask_iou_min": round(min(ious), 5) if ious else None,
        "pixels_different": int(sum((x != y).sum() for x, y in masks)),
        "pixels": int(sum(x.size for x, _ in masks)),
    }


def printed(tables: dict) -> str:
    def cell(value: tuple[float, float] | None) -> str:
        return f"{value[0]:.3f} ± {value[1]:.3f}" if value else "-"

    lines = [
        f"{'':32}{'questions':>9}{'exact':>16}{'mean IoU':>16}{'IoU where exact':>17}{'refused right':>16}"
    ]
    for group, rows in tables.items():
        for kind, row in rows.items():
            cells = (cell(row[name]) for name in ("exact", "iou", "iou_where_exact", "refused"))
            lines.append(
                f"{group + ', ' + kind:32}{row['questions']:>9}" + "".join(f"{c:>16}" for c in cells)
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="bundle or checkpoint folder")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed-base", type=int, default=SEED_BASE)
    parser.add_argument("--long-side", type=int, default=LONG_SIDE, help="of the scenes, in pixels")
    parser.add_argument("--against", type=Path, help="second model to compare answers with")
    parser.add_argument("--json", type=Path, help="write the tables here")
    args = parser.parse_args()
    setting = (args.scenes, args.seed_base, args.long_side)
    asked = list(ask(answerer(args.model), *setting))
    tables = report(asked)
    print(printed(tables))
    if args.against:
        others = list(ask(answerer(args.against), *setting))
        tables["against"] = agreement(asked, others)
        print(json.dumps(tables["against"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
