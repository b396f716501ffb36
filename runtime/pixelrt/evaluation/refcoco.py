"""RefCOCO, RefCOCO+ and RefCOCOg: one object, some sentences about it, one mask; cIoU and gIoU.

cIoU = sum of intersections / sum of unions, gIoU = mean IoU, both over all masks; two empty masks have IoU 1.

PixelLM is asked each sentence alone; its answer is put into the prompt and read in one pass, as in the paper's
evaluation (`validate` of train_ds.py), unless it is to write it itself. PSALM reads all sentences about an object as
one instruction (build_RefCOCO.py, referring_segmentation.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import InputError
from pixelrt.evaluation import annotations as read
from pixelrt.evaluation.benchmark import Benchmark, LastFrame, Options, Record
from pixelrt.evaluation.measures import cumulative_iou, ious, overlap, union_of
from pixelrt.evaluation.refer_file import read_refs
from pixelrt.queries import Refer
from pixelrt.segmenter import Segmenter

VARIANTS = ("refcoco", "refcoco+", "refcocog")
REFS = ("refs(unc).p", "refs(umd).p", "refs(google).p")  # the split both papers use comes first
QUESTION = " What is {sent} in this image? Please output segmentation mask."
MAX_NEW_TOKENS = 512
FORM = {
    "images": [{"id": object, "file_name": str, "height": int, "width": int}],
    "annotations": [{"id": object, "image_id": object, "segmentation": object}],
}
REF = {"ref_id": object, "ann_id": object, "image_id": object, "split": str, "sentences": [{"sent": str}]}


@dataclass(frozen=True)
class Ref:
    id: int
    sentences: tuple[str, ...]
    picture: Path
    size: tuple[int, int]  # H, W
    segmentation: Any


def open_refcoco(folder: Path, options: Options) -> Benchmark:
    """folder: with instances.json and one of REFS."""
    source = folder / "instances.json"
    refs_file = next((folder / name for name in REFS if (folder / name).is_file()), None)
    hashes = [read.file_sha256(source, "what RefCOCO calls the annotated objects")]
    if refs_file is None:
        raise InputError(f"{folder} has none of {', '.join(REFS)}. Download the references of this dataset.")
    hashes.append(read.file_sha256(refs_file, "the sentences"))
    document = read.checked(read.read_json(source, "the annotated objects"), FORM, str(source))
    images = read.by_id(document["images"], source, "pictures")
    objects = read.by_id(document["annotations"], source, "objects")
    every = read.checked(read_refs(refs_file), [REF], str(refs_file))
    split = options.split or "val"
    chosen = [ref for ref in every if ref["split"] == split]
    if not chosen:
        known = ", ".join(sorted({ref["split"] for ref in every}))
        raise InputError(f"{refs_file} has no split {split!r}. Choose one of: {known or 'none at all'}.")
    pictures = pictures_of(folder, options.images)
    items = []
    for ref in chosen:
        who = f"reference {ref['ref_id']} of {refs_file}"
        image = read.looked_up(images, ref["image_id"], who, "picture")
        found = read.looked_up(objects, ref["ann_id"], who, "object")
        sentences = tuple(sentence["sent"].strip() for sentence in ref["sentences"])
        if not sentences or not all(sentences):
            raise InputError(f"{who} has no sentence. {read.ADVICE}")
        size = (image["height"], image["width"])
        items.append(
            Ref(ref["ref_id"], sentences, pictures / image["file_name"], size, found["segmentation"])
        )
    items.sort(key=lambda item: str(item.picture))  # a picture's references follow one another
    last = LastFrame()
    question = options.question or QUESTION
    how = "the model's own" if options.generate else "given, read in one pass"
    return Benchmark(
        name="refcoco",
        variant=folder.name if folder.name in VARIANTS else "refcoco",
        split=split,
        protocol={
            "pixellm": f"every sentence alone, {question.strip()!r}; the answer is {how}",
            "psalm": "all sentences of an object as one instruction, the best mask",
        },
        sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        items=items,
        identify=lambda item: str(item.id),
        files=lambda item: (item.picture,),
        ask={
            "pixellm": partial(ask_pixellm, last=last, question=question, generate=options.generate),
            "psalm": partial(ask_psalm, last=last),
        },
        measures=("cIoU", "gIoU"),
        scores=scores,
        unit="references",
    )


def pictures_of(folder: Path, given: Path | None) -> Path:
    """Where the COCO 2014 training pictures are: as given, or at one of the places their users keep them."""
    if given is not None:
        return given
    for root in (folder, folder.parent):
        for place in ("images/mscoco/images/train2014", "train2014", "images"):
            if (root / place).is_dir():
                return root / place
    raise InputError(
        f"no pictures beside {folder}. Give the folder of COCO's train2014 pictures: --images FOLDER"
    )


def ask_pixellm(segmenter: Segmenter, item: Ref, last: LastFrame, question: str, generate: bool) -> Record:
    """Masks drawn for one sentence are joined; the answer that is given has one."""
    truth = _truth(item)
    frame = last.of(
        segmenter, item.picture, lambda: read.read_picture(item.picture, item.size, "instances.json")
    )
    pairs = []
    for sentence in item.sentences:
        text = question.replace("{sent}", sentence.lower())
        if generate:
            masks = segmenter.segment(frame, text, max_new_tokens=MAX_NEW_TOKENS).masks
        else:
            masks = segmenter.segment(frame, answered(segmenter, text), max_new_tokens=1).masks[:1]
        pairs.append(overlap(truth, union_of([mask.mask for mask in masks], item.size)))
    return {"overlaps": pairs}


def answered(segmenter: Any, question: str) -> str:
    """The whole prompt with the answer of one target after it: its masks come from the prompt's own tokens."""
    prompt = segmenter.prompt
    run = " ".join(prompt.tokenizer.id_to_token(token) for token in segmenter.codebook.ids)
    return f"{prompt.template.replace('{question}', question)} {run}."


def ask_psalm(segmenter: Segmenter, item: Ref, last: LastFrame) -> Record:
    truth = _truth(item)
    frame = last.of(
        segmenter, item.picture, lambda: read.read_picture(item.picture, item.size, "instances.json")
    )
    mask = segmenter.segment(frame, Refer(item.sentences)).masks[0].mask
    return {"overlaps": [overlap(truth, mask)]}


def scores(items: Sequence[Any], records: Sequence[Record]) -> dict[str, float]:
    pairs = [(both, either) for record in records for both, either in record["overlaps"]]
    return {"cIoU": cumulative_iou(pairs), "gIoU": float(np.mean(ious(pairs)))}


def _truth(item: Ref) -> Any:
    return read.read_mask(item.segmentation, item.size, f"reference {item.id}")
