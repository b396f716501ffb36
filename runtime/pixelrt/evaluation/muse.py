"""MUSE: questions with several targets about pictures of COCO; cIoU and gIoU after matching (PixelLM, ar_validate).

Each question's masks are matched with its targets; what has no partner is paired with an empty mask. cIoU = sum of
intersections / sum of unions over all pairs. gIoU = sum of the pairs' IoU / sum over pictures of max(masks drawn,
targets), where two empty masks have IoU 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError
from pixelrt.evaluation import annotations as read
from pixelrt.evaluation.benchmark import Benchmark, Options, Record
from pixelrt.evaluation.matching import costs, full_logits, matched, paired_overlaps
from pixelrt.evaluation.measures import cumulative_iou, ious
from pixelrt.segmenter import Segmenter

# The original draws one of the two at random; here they alternate.
QUESTIONS = ("{sent} Please respond with segmentation mask.", "{sent} Please output segmentation mask.")
MAX_NEW_TOKENS = 512
FOLDERS = ("train2014", "train2017", "val2017")
FORM = [{"height": int, "width": int, "questions": [str], "answers": [[{"segmentation": object}]]}]


@dataclass(frozen=True)
class Entry:
    number: int
    picture: Path
    size: tuple[int, int]  # H, W
    questions: tuple[str, ...]
    answers: tuple[tuple[Any, ...], ...]  # segmentations of each question's targets


def open_muse(folder: Path, options: Options) -> Benchmark:
    """folder: with muse_SPLIT.json, and the pictures below it, beside it or below --images."""
    split = options.split or "val"
    source = folder / f"muse_{split}.json"
    sha256 = read.file_sha256(source, "MUSE's questions of this split")
    document = read.checked(read.read_json(source, "MUSE's questions"), FORM, str(source))
    items = []
    for number, entry in enumerate(document):
        who = f"{source}: entry {number}"
        if len(entry["questions"]) != len(entry["answers"]) or not entry["questions"]:
            raise InputError(
                f"{who} has {len(entry['questions'])} questions and {len(entry['answers'])} answers. {read.ADVICE}"
            )
        targets = tuple(tuple(target["segmentation"] for target in answer) for answer in entry["answers"])
        picture = _picture(folder, options.images, entry, who)
        size = (entry["height"], entry["width"])
        items.append(Entry(number, picture, size, tuple(q.strip() for q in entry["questions"]), targets))
    if not items:
        raise InputError(f"{source} has no questions. {read.ADVICE}")
    questions = (options.question,) if options.question else QUESTIONS
    return Benchmark(
        name="muse",
        variant="muse",
        split=split,
        protocol={
            "pixellm": "the model's own answer to " + " and ".join(repr(q) for q in questions) + " in turn"
        },
        sha256=sha256,
        items=items,
        identify=lambda item: str(item.number),
        files=lambda item: (item.picture,),
        ask={"pixellm": partial(ask, source=str(source), questions=questions)},
        measures=("cIoU", "gIoU"),
        scores=scores,
        unit="pictures",
    )


def _picture(folder: Path, given: Path | None, entry: dict[str, Any], who: str) -> Path:
    """`file_name` is one of train2014; else the address says which of the others."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str):
        part = "train2014"
    elif isinstance(address, str):
        name, part = address.rpartition("/")[2], "train2017" if "train2017" in address else "val2017"
    else:
        raise InputError(f"{who} has neither file_name nor coco_url. {read.ADVICE}")
    roots = [given] if given else [folder, folder / "refer_seg/images/mscoco/images", folder.parent]
    places = [root / part / name for root in roots] + ([given / name] if given else [])
    return next((place for place in places if place.is_file()), places[0])


def ask(segmenter: Segmenter, item: Entry, source: str, questions: Sequence[str]) -> Record:
    who = f"{source}: entry {item.number}"
    frame = segmenter.encode(read.read_picture(item.picture, item.size, who))
    pairs: list[tuple[int, int]] = []
    drawn_count = wanted_count = 0
    for place, (text, answer) in enumerate(zip(item.questions, item.answers, strict=True)):
        wanted = [read.read_mask(one, item.size, who) for one in answer]
        prompt = questions[(item.number + place) % len(questions)].replace("{sent}", text)
        masks = list(segmenter.segment(frame, prompt, max_new_tokens=MAX_NEW_TOKENS).masks)
        partners = matched(costs([full_logits(mask, frame) for mask in masks], wanted))
        pairs += paired_overlaps([mask.mask for mask in masks], wanted, partners)
        drawn_count, wanted_count = drawn_count + len(masks), wanted_count + len(wanted)
    return {"overlaps": pairs, "most": max(drawn_count, wanted_count)}


def scores(items: Sequence[Any], records: Sequence[Record]) -> dict[str, float]:
    pairs = [(both, either) for record in records for both, either in record["overlaps"]]
    among = sum(record["most"] for record in records)
    return {"cIoU": cumulative_iou(pairs), "gIoU": sum(ious(pairs)) / among if among else 1.0}
