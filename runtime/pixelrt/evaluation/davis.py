"""DAVIS 2017, semi-supervised: the objects of a video's first frame, found in the others; J&F.

J: IoU; F: contour accuracy (measures.py); of each object the mean over frames without the first and the last, then the
mean over all objects of all videos; J&F is the mean of the two. Source: davis2017-evaluation, semi-supervised.

The paper's evaluation (build_DAVIS.py, eval_davis.py) asks, in each frame, for the objects that its annotation shows,
as they were in the last frame that gave distinct masks if that one had as many objects, else as in the first.
`blind` asks for all objects in every frame, and looks at no annotation but the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import InputError
from pixelrt.evaluation import annotations as read
from pixelrt.evaluation.benchmark import Benchmark, Options, Record
from pixelrt.evaluation.measures import Bits, Labels, contour_accuracy, iou
from pixelrt.families.psalm_video import distinct
from pixelrt.image import Rgb
from pixelrt.queries import Regions, Track
from pixelrt.segmenter import Frame

UNJUDGED = 255
RESOLUTION = "480p"


@dataclass(frozen=True)
class Video:
    name: str
    frames: tuple[tuple[Path, Path], ...]  # picture and label map, in order


@dataclass(frozen=True, eq=False)
class Seen:
    """Where objects are looked up: a frame, their numbers and masks in it."""

    frame: Frame
    numbers: Sequence[int]
    masks: Sequence[Bits]


def open_davis(folder: Path, options: Options) -> Benchmark:
    """folder: with ImageSets/2017/SPLIT.txt, JPEGImages/480p and Annotations/480p."""
    split = options.split or "val"
    source = folder / "ImageSets" / "2017" / f"{split}.txt"
    sha256 = read.file_sha256(source, "the list of DAVIS's videos")
    try:
        names = source.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        raise InputError(f"{source} is not text. {read.ADVICE}") from None
    pictures = options.images or folder / "JPEGImages" / RESOLUTION
    items = [
        _video(name, pictures / name, folder / "Annotations" / RESOLUTION / name, source) for name in names
    ]
    if not items:
        raise InputError(f"{source} names no video. {read.ADVICE}")
    listed = "\n".join(f"{video.name} {len(video.frames)}" for video in items)
    how = (
        "all objects in every frame"
        if options.blind
        else "in each frame the objects that its annotation shows"
    )
    return Benchmark(
        name="davis",
        variant="davis",
        split=split,
        protocol={"psalm": how},
        sha256=hashlib.sha256(f"{sha256}\n{listed}".encode()).hexdigest(),
        items=items,
        identify=lambda item: str(item.name),
        files=lambda item: [file for pair in item.frames for file in pair],
        ask={"psalm": partial(ask, blind=options.blind)},
        measures=("J&F", "J", "F"),
        scores=scores,
        unit="videos",
    )


def _video(name: str, pictures: Path, maps: Path, source: Path) -> Video:
    for folder in (pictures, maps):
        if not folder.is_dir():
            raise InputError(f"{source} names the video {name}, but {folder} is not there. Download it.")
    shown = {
        file.stem: file for file in pictures.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png")
    }
    labelled = {file.stem: file for file in maps.iterdir() if file.suffix.lower() == ".png"}
    if set(shown) != set(labelled):
        odd = sorted(set(shown) ^ set(labelled))[0]
        raise InputError(
            f"frame {odd} of {name} is in only one of {pictures} and {maps}. Download both again."
        )
    if len(shown) < 3:
        raise InputError(
            f"{pictures} has {len(shown)} frames; the first and the last are not judged, so give 3."
        )
    return Video(name, tuple((shown[stem], labelled[stem]) for stem in sorted(shown)))


def _read(video: Video) -> Iterator[tuple[Rgb, Labels]]:
    """Picture and numbers of the objects, frame by frame. None may come up that the first frame does not show."""
    known: set[int] | None = None
    for picture, label_map in video.frames:
        truth = read.read_labels(label_map, None, video.name)
        truth = np.where(truth == UNJUDGED, 0, truth)
        numbers = set(np.unique(truth).tolist()) - {0}
        known = numbers if known is None else known
        if not known or not numbers <= known:
            raise InputError(
                f"{label_map} shows the objects {sorted(numbers)}, the first frame {sorted(known)}. {read.ADVICE}"
            )
        size = (truth.shape[0], truth.shape[1])
        yield read.read_picture(picture, size, str(label_map)), truth


def ask(segmenter: Any, item: Video, blind: bool) -> Record:
    return judged(_followed_blindly(segmenter, item) if blind else _followed(segmenter, item))


def _followed(segmenter: Any, item: Video) -> Iterator[tuple[Labels, Labels]]:
    """(truth, drawn) of every frame, the first one's own truth included."""
    first = memory = None
    for picture, truth in _read(item):
        frame = segmenter.encode(picture)
        shown = [int(number) for number in np.unique(truth) if number]
        if first is None:
            first = Seen(frame, shown, [truth == number for number in shown])
            yield truth, truth
            continue
        marks = [mask for number, mask in zip(first.numbers, first.masks, strict=True) if number in shown]
        seen = Seen(first.frame, shown, marks)
        if memory is not None and len(memory.numbers) == len(shown):
            seen = memory
        if not shown:
            yield truth, np.zeros_like(truth)
            continue
        try:
            answer = segmenter.segment(frame, Track(seen.frame, Regions(masks=seen.masks)))
        except InputError:
            if seen is not memory:
                raise
            # A remembered mask that is too small for the network's input: as they were marked, then.
            seen = Seen(first.frame, shown, marks)
            answer = segmenter.segment(frame, Track(seen.frame, Regions(masks=seen.masks)))
        yield truth, np.array([0, *seen.numbers])[answer.label_map]
        masks = [mask.mask for mask in answer.masks]
        if distinct(masks):
            memory = Seen(frame, seen.numbers, masks)


def _followed_blindly(segmenter: Any, item: Video) -> Iterator[tuple[Labels, Labels]]:
    truths: list[Labels] = []

    def pictures() -> Iterator[Rgb]:
        for picture, truth in _read(item):
            truths.append(truth)
            yield picture

    start = next(truth for _, truth in _read(item))
    numbers = [int(number) for number in np.unique(start) if number]
    regions = Regions(masks=[start == number for number in numbers])
    for answer in segmenter.track(pictures(), regions):
        yield truths.pop(0), np.array([0, *numbers])[answer.label_map]


def judged(frames: Iterable[tuple[Labels, Labels]]) -> Record:
    """J and F of objects 1 to the first frame's highest, each a list over the frames between first and last."""
    objects: range | None = None
    j: list[list[float]] = []  # frame by frame
    f: list[list[float]] = []
    for truth, drawn in frames:
        if objects is None:
            objects = range(1, int(truth.max()) + 1)
            continue
        pairs = [(truth == k, drawn == k) for k in objects]
        j.append([iou(want, got) for want, got in pairs])
        f.append([contour_accuracy(want, got) for want, got in pairs])
    return {"j": np.transpose(j[:-1]).tolist(), "f": np.transpose(f[:-1]).tolist()}


def scores(items: Sequence[Any], records: Sequence[Record]) -> dict[str, float]:
    j, f = (float(np.mean([np.mean(one) for record in records for one in record[key]])) for key in "jf")
    return {"J&F": (j + f) / 2, "J": j, "F": f}
