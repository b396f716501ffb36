"""What a PixelLM is asked about held-out scenes: one question of each kind that a scene allows.

exact: the whole answer, letter by letter. iou: a mean over targets, paired in order; a missing or surplus mask counts
0. refused: of questions without a target, whether no mask is drawn. giou: a mean over questions, of all masks
together, where no mask for no target is 1 (LISA).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pixelrt.evaluation.measures import iou, union_of

from pixelrt_export.tiny.backgrounds import GROUPS
from pixelrt_export.tiny.questions import MIX, Question, question
from pixelrt_export.tiny.records import Record, paired_ious
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import Scene

MAX_NEW_TOKENS = 96  # five masks and the words around them take under 60
MEASURES = {
    "exact": "answer right",
    "iou": "mean IoU",
    "iou_where_exact": "IoU where right",
    "ciou": "cIoU",
    "giou": "gIoU",
    "refused": "refused right",
}
KINDS = list(MIX)


@dataclass(frozen=True)
class Reply:
    ids: list[int]  # without eos
    text: str  # with [SEG] where a mask stands
    masks: np.ndarray  # (N, H, W) bool


Answerer = Callable[[np.ndarray, str], Reply]


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


def questions_about(drawn: Scene, seed: int) -> Iterator[Question]:
    """One question of each kind; a scene of plain objects only has no texture question."""
    for kind in MIX:
        asked = question(drawn.things, random.Random(f"{seed} {kind}"), kind)
        if asked.kind == kind:
            yield asked


def record(group: str, seed: int, drawn: Scene, asked: Question, reply: Reply) -> Record:
    wanted, exact = [drawn.mask(t) for t in asked.targets], float(reply.text == asked.answer)
    together = iou(union_of(wanted, drawn.labels.shape), union_of(reply.masks, drawn.labels.shape))
    scores = {"exact": [exact], "giou": [together]}
    ious = paired_ious(wanted, reply.masks)
    if wanted:
        scores["iou"] = ious
        scores["iou_where_exact"] = ious if exact else []
    else:
        scores["refused"] = [float(not len(reply.masks))]
    goodness = min([exact, *ious])
    return Record(
        group,
        seed,
        asked.kind,
        asked.text,
        drawn.image,
        wanted,
        list(reply.masks),
        scores,
        goodness,
        asked.answer,
        reply.text,
        ids=reply.ids,
    )


def examine(answer: Answerer, group: str, seed: int, long_side: int) -> Iterator[tuple[Question, Record]]:
    drawn = scene(seed, long_side, GROUPS[group])
    for asked in questions_about(drawn, seed):
        yield asked, record(group, seed, drawn, asked, answer(drawn.image, asked.text))


def agreement(pairs: list[tuple[Record, Reply]]) -> dict:
    """How far two models answer alike: token for token, and mask against mask where the tokens agree."""
    same = [(a, b) for a, b in pairs if a.ids == b.ids]
    masks = [
        (x, y) for a, b in same for x, y in zip(a.got, b.masks, strict=True)
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
