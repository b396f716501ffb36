"""What a PSALM is asked about held-out scenes: all class names, a sentence of each kind, marked regions, clips.

panoptic: quality as COCO defines it, the 30 names as classes; the background is no void: a segment drawn there is an
invention. sentence: IoU of the one mask; of all masks together where several things are meant; `refused`, where nothing
is meant, whether nothing is drawn. region: IoU of each thing marked by a point, a scribble, a box, its mask. video: J
and F of each thing of the first frame, given by its mask, over the frames after it (DAVIS), from the fused label map.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pixelrt
from pixelrt.evaluation.measures import contour_accuracy, counts, iou, union_of
from pixelrt.queries import Classes, Refer, Regions

from pixelrt_export.tiny.backgrounds import GROUPS
from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.psalm_prompts import MIX, NAMES, mark, sentence
from pixelrt_export.tiny.records import Record
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import Scene

MARKS = {"point": "points", "scribble": "scribbles", "box": "boxes", "mask": "masks"}
NONE_BELOW = 0.5
CLIP_EVERY = 5  # scenes
MEASURES = {"iou": "mean IoU", "ciou": "cIoU", "refused": "refused right"}


KINDS = ["panoptic", "video", *(f"sentence: {kind}" for kind in MIX), *(f"region: {kind}" for kind in MARKS)]


def panoptic(
    segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, group: str, drawn: Scene, seed: int
) -> Record:
    answer = segmenter.segment(frame, Classes(NAMES))
    truth = {t.label: (NAMES.index(t.name), drawn.mask(t)) for t in drawn.things}
    found = [(s.category, answer.label_map == s.id) for s in answer.segments]
    table = counts(
        drawn.labels,
        {label: number for label, (number, _) in truth.items()},
        answer.label_map,
        {s.id: s.category for s in answer.segments},
        len(NAMES),
    )
    right, wrong = table[:, 1].sum(), table[:, 2:].sum()
    return Record(
        group,
        seed,
        "panoptic",
        "all 30 names",
        drawn.image,
        [mask for _, mask in truth.values()],
        [mask for _, mask in found],
        {},
        float(table[:, 0].sum() / max(right + wrong / 2, 1)),
        ", ".join(t.name for t in drawn.things),
        ", ".join(NAMES[k] for k, _ in found),
        counts=table,
    )


def spoken(
    segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, group: str, drawn: Scene, seed: int
) -> Iterator[Record]:
    """One sentence of each kind that the scene allows."""
    for kind in MIX:
        asked = sentence(drawn.things, random.Random(f"{seed} {kind}"), kind)
        if asked is None:
            continue
        query = Refer(
            asked.texts[0], several=kind == "several", none_below=NONE_BELOW if kind == "none" else 0
        )
        masks = [m.mask for m in segmenter.segment(frame, query).masks]
        wanted = [drawn.labels == label for label in asked.answers]
        if kind == "none":
            good, scores = float(not masks), {"refused": [float(not masks)]}
        else:
            good = iou(union_of(masks, drawn.labels.shape), union_of(wanted, drawn.labels.shape))
            scores = {"iou": [good]}
        name = f"sentence: {kind}"
        yield Record(group, seed, name, asked.texts[0], drawn.image, wanted, masks, scores, good)


def marked(
    segmenter: pixelrt.Segmenter, frame: pixelrt.Frame, group: str, drawn: Scene, seed: int
) -> Iterator[Record]:
    """Every thing by a point, a scribble, a box and its mask; all things of a scene in one prompt."""
    for kind, name in MARKS.items():
        rng, given = random.Random(f"{seed} {kind}"), []
        for thing in drawn.things:
            inside = drawn.mask(thing)
            rows, columns = np.nonzero(inside)
            places = [(int(columns[i]), int(rows[i])) for i in (rng.randrange(len(rows)) for _ in range(3))]
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            forms = {"point": places[0], "scribble": places, "box": tuple(map(int, box))}
            given.append(forms.get(kind, mark(inside, "mask", rng)))
        answer = segmenter.segment(frame, Regions(**{name: given}))
        for thing, region, got in zip(drawn.things, given, answer.masks, strict=True):
            wanted = drawn.mask(thing)
            value = iou(got.mask, wanted)
            prompt = f"{kind} on the {thing.name}" + ("" if kind == "mask" else f": {region}")
            scores = {"iou": [value]}
            yield Record(
                group, seed, f"region: {kind}", prompt, drawn.image, [wanted], [got.mask], scores, value
            )


def followed(segmenter: pixelrt.Segmenter, group: str, seed: int, long_side: int) -> Record:
    """The things of a clip's first frame in the frames after it. The record shows the frame that went worst."""
    film = clip(seed, long_side, GROUPS[group])
    things, first = film.tracked(), film.frames[0]
    regions = Regions(masks=[first.mask(t) for t in things])
    results = list(segmenter.track([f.image for f in film.frames], regions))[1:]
    region, outline = np.zeros((2, len(results), len(things)))
    for t, (frame, result) in enumerate(zip(film.frames[1:], results, strict=True)):
        for k, thing in enumerate(things):
            want, got = frame.mask(thing), result.label_map == k + 1
            region[t, k], outline[t, k] = iou(want, got), contour_accuracy(want, got)
    j, f = region.mean(0), outline.mean(0)
    worst = int(region.mean(1).argmin())
    shown = film.frames[worst + 1]
    return Record(
        group,
        seed,
        "video",
        f"frame {worst + 2} of {len(film.frames)}: " + ", ".join(t.name for t in things),
        shown.image,
        [shown.mask(t) for t in things],
        [results[worst].label_map == k + 1 for k in range(len(things))],
        {"j": list(j), "f": list(f), "jf": list((j + f) / 2)},
        float(region[worst].mean()),
    )


def examine(segmenter: pixelrt.Segmenter, group: str, seed: int, long_side: int) -> Iterator[Record]:
    drawn = scene(seed, long_side, GROUPS[group])
    frame = segmenter.encode(drawn.image)
    yield panoptic(segmenter, frame, group, drawn, seed)
    yield from spoken(segmenter, frame, group, drawn, seed)
    yield from marked(segmenter, frame, group, drawn, seed)
    if seed % CLIP_EVERY == 0:
        yield followed(segmenter, group, seed, long_side)
