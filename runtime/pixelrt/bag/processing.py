"""Ask about every image of a topic, then write the recording anew with the answers in it.

Two passes: the first asks, and keeps what was found in a journal beside the output; the second copies the recording and
makes the messages from the journal. So a stopped run loses one image at most, and the file is the same however often it
was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.bag.journal import Journal
from pixelrt.bag.recording import Copy, Recording, maker_of
from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.queries import Classes, Query, Refer
from pixelrt.rle import decode
from pixelrt.ros.images import IMAGE, picture_of
from pixelrt.ros.messages import (
    DETECTIONS,
    LABEL_INFO,
    Numbering,
    detections_message,
    image_message,
    label_info_message,
    label_map,
)
from pixelrt.segmenter import Segmenter

Progress = Callable[[str, float, float], None]
# What is added, below the prefix.
LABEL_MAP_TOPIC, DETECTIONS_TOPIC, LABEL_INFO_TOPIC = "label_map", "detections", "label_info"
NO_LOGITS = np.zeros((0, 0), np.float32)


@dataclass
class Summary:
    """What a run did."""

    images: int = 0
    masks: int = 0
    asked: int = 0  # images that were not in the journal
    unread: int = 0  # images that could not be read: nothing was written for them
    why_unread: str = ""  # the first of them


@dataclass(frozen=True)
class Task:
    """What to ask about which images, and how it is written."""

    query: str | Query
    topic: str
    prefix: str = "/pixelrt"
    numbers: str = "class"  # see `pixelrt.ros.messages.Numbering`
    max_new_tokens: int = 512

    def topics(self) -> dict[str, str]:
        """Topic -> type of what is added."""
        kinds = {LABEL_MAP_TOPIC: IMAGE, DETECTIONS_TOPIC: DETECTIONS, LABEL_INFO_TOPIC: LABEL_INFO}
        return {f"{self.prefix}/{name}": kind for name, kind in kinds.items()}

    def numbering(self) -> Numbering:
        return Numbering(self.numbers, self.query.names if isinstance(self.query, Classes) else ())


def journal_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.journal")


def process(
    segmenter: Segmenter, recording: Recording, target: Path, task: Task, progress: Progress
) -> Summary:
    """Write `target`, and the journal beside it while that is not finished. Raises InputError."""
    total = recording.image_topics()[task.topic]
    about = {
        "bundle": segmenter.bundle.sha256,
        "question": _question(task.query),
        "topic": task.topic,
        "max_new_tokens": task.max_new_tokens,
        "recording": recording.about,
    }
    own = task.topics()
    target.parent.mkdir(parents=True, exist_ok=True)
    with Journal(journal_of(target), about) as journal:
        summary = Summary(asked=total - journal.done)
        for place, (connection, _, data) in enumerate(recording.messages(task.topic)):
            if place >= journal.done:
                progress("asking about images", place, total)
                journal.add(_asked(segmenter, recording, connection, data, task))
        progress("asking about images", total, total)
        copy = Copy(recording, target, own)
        try:
            _write(recording, journal, copy, task, summary, progress)
        except BaseException:
            copy.abandon()
            raise
        copy.finish()
        journal.path.unlink()
    return summary


def _question(query: str | Query) -> Any:
    """A query in plain types, the same for equal queries."""
    if isinstance(query, Classes):
        return {**asdict(query), "names": list(query.names), "things": sorted(query.things or ())}
    if isinstance(query, Refer):
        return {**asdict(query), "text": list(query.sentences)}
    return query


def _asked(segmenter: Segmenter, recording: Recording, connection: Any, data: bytes, task: Task) -> Any:
    """The journal's record of an image: its masks, or why it could not be read."""
    try:
        picture = picture_of(recording.message(connection, data))
    except InputError as error:
        return {"unread": str(error)}
    answer = segmenter.segment(segmenter.encode(picture), task.query, max_new_tokens=task.max_new_tokens)
    return {
        "size": list(picture.shape[:2]),
        "masks": [
            {"label": mask.label, "score": float(mask.score), "box": _plain(mask.box), "rle": mask.rle()}
            for mask in answer.masks
        ],
    }


def _plain(box: Sequence[int] | None) -> list[int] | None:
    return None if box is None else [int(edge) for edge in box]


def _masks(record: Any) -> list[Mask]:
    return [
        Mask(
            decode(entry["rle"]),
            entry["score"],
            entry["label"],
            None,
            None if entry["box"] is None else tuple(entry["box"]),
            NO_LOGITS,
        )
        for entry in record["masks"]
    ]


def _write(
    recording: Recording, journal: Journal, copy: Copy, task: Task, summary: Summary, progress: Progress
) -> None:
    records, numbering = journal.records(), task.numbering()
    total = recording.reader.message_count
    map_topic, detections_topic, info_topic = task.topics()
    maker = maker_of(copy.types)
    told: dict[int, str] | None = None
    for place, (connection, time_ns, data) in enumerate(recording.messages()):
        progress(f"writing {copy.target.name}", place, total)
        copy.copy(connection, time_ns, data)
        if connection.topic != task.topic:
            continue
        summary.images += 1
        record = next(records)
        if "unread" in record:
            summary.unread += 1
            summary.why_unread = summary.why_unread or record["unread"]
            continue
        header = recording.message(connection, data).header
        masks = _masks(record)
        numbers, names = numbering(masks)
        summary.masks += len(masks)
        drawn = label_map(masks, numbers, (record["size"][0], record["size"][1]), max(names, default=0))
        if names != told:  # before the map that needs it
            copy.add(info_topic, time_ns, label_info_message(maker, header, names))
            told = names
        copy.add(map_topic, time_ns, image_message(maker, header, drawn))
        copy.add(detections_topic, time_ns, detections_message(maker, header, masks, numbers))
    progress(f"writing {copy.target.name}", total, total)
