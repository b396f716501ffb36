"""Several questions at once: which picture each is about, and what is shared out among their answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pixelrt.engine import Array, Engine, Value
from pixelrt.errors import InputError
from pixelrt.image import ImageSpec, Prepared, Rgb, open_image, prepare
from pixelrt.segmenter import Frame, Segmenter, frame_of, stage

In = TypeVar("In")
Out = TypeVar("Out")
# Of the network's inputs in one run of an encoder: its activations lie in memory for all of them.
PIXELS_MAX = 1 << 20


def paired(images: Any, prompts: Any) -> tuple[list[Any], list[int], list[Any]]:
    """Distinct images; for each question the place of its image in them, and its prompt.

    A list or tuple holds several; what is no list, or a list of one, is for all of the other side. Raises InputError
    where both have several and not as many.
    """
    pictures, asked = _listed(images), _listed(prompts)
    if len(pictures) != len(asked) and 1 not in (len(pictures), len(asked)):
        raise InputError(
            f"There are {len(pictures)} images and {len(asked)} prompts. "
            "Give one image, or one prompt, or as many of each."
        )
    count = 0 if not (pictures and asked) else max(len(pictures), len(asked))
    places: dict[Any, int] = {}
    distinct: list[Any] = []
    which: list[int] = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        key = picture if isinstance(picture, str | os.PathLike | bytes) else id(picture)
        if key not in places:
            places[key] = len(distinct)
            distinct.append(picture)
        which.append(places[key])
    return distinct, which, [asked[i % len(asked)] for i in range(count)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def each(what: str, items: Sequence[In], function: Callable[[In], Out]) -> list[Out]:
    """function of every item; an InputError says which of several it is about."""
    found = []
    for number, item in enumerate(items, start=1):
        try:
            found.append(function(item))
        except InputError as error:
            if all(other is item for other in items):
                raise
            raise InputError(f"{what} {number} of {len(items)}: {error}") from error
    return found


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture that was read; timing: what was spent on it, in ms by stage."""

    rgb: Rgb
    timing: dict[str, float]


def opened(image: Any) -> Opened:
    timing: dict[str, float] = {}
    with stage(timing, "image"):
        rgb = open_image(image)
    return Opened(rgb, timing)


def read_all(segmenter: Segmenter, pictures: Sequence[Any]) -> list[Frame | Opened]:
    """Frames as they are, other pictures opened: what is wrong with one is known before any is encoded."""
    return each(
        "Image", pictures, lambda one: frame_of(segmenter, one) if isinstance(one, Frame) else opened(one)
    )


def frames_of(
    pictures: Sequence[Frame | Opened], encode: Callable[[Sequence[Opened]], Iterable[Frame]]
) -> list[Frame]:
    """Frames of all; those that are none yet are encoded together."""
    made = iter(encode([picture for picture in pictures if isinstance(picture, Opened)]))
    return [next(made) if isinstance(picture, Opened) else picture for picture in pictures]


def encoded(
    encoder: Engine, spec: ImageSpec, names: Sequence[str], pictures: Sequence[Opened]
) -> Iterator[tuple[Opened, Prepared, dict[str, Value]]]:
    """Each picture, as the graph takes it, and the graph's outputs for it alone (a batch of 1).

    names: the graph's inputs, as `Prepared` names them. As many pictures in one run as the engine takes, and as have
    PIXELS_MAX together. The picture's `timing` gets its share of the stages.
    """
    most = min(max(1, PIXELS_MAX // spec.size**2), encoder.memory.most("pixels", 0) or len(pictures))
    for start in range(0, len(pictures), most):
        group = pictures[start : start + most]
        prepared = []
        for picture in group:
            with stage(picture.timing, "image"):
                prepared.append(prepare(picture.rgb, spec))
        spent: dict[str, float] = {}
        with stage(spent, "encode"):
            out = encoder({name: _joined([getattr(one, name) for one in prepared]) for name in names})
        share(spent, [picture.timing for picture in group])
        for i, (picture, one) in enumerate(zip(group, prepared, strict=True)):
            yield picture, one, {name: _item(value, i) for name, value in out.items()}


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _item(value: Value, i: int) -> Value:
    """A batch of 1 with item i; in memory of its own, so that a frame does not keep its neighbours."""
    if len(value) == 1:
        return value
    item: Value = value[i : i + 1]
    return item.copy() if isinstance(item, np.ndarray) else item


def share(spent: Mapping[str, float], timings: Sequence[dict[str, float]]) -> None:
    """Add a stage's ms to several timings in equal parts."""
    for name, ms in spent.items():
        for timing in timings:
            timing[name] = timing.get(name, 0.0) + ms / len(timings)
