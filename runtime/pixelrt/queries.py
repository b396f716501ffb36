"""What can be asked about a picture, one type a kind of question. Each checks itself when it is made.

Classes(["person", "sky"], task="panoptic", things=["person"])    every pixel, or every object, of these classes
Refer("the red mug")                                               the one thing a sentence names, or several
Regions(points=[(120, 80)])                                        the object at each point, scribble, box or mask
Track(picture, Regions(masks=[...]))                               objects marked in one picture, found in another

Places are x, y in pixels of the original picture, from its top-left corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError

TASKS = ("panoptic", "instance", "semantic")
CLASSES_MAX, REGIONS_MAX = 1000, 100
NAMES_SHOWN = 6
# Kinds of regions, in the order of the answers, and what one is called.
KINDS = {"points": "point", "scribbles": "scribble", "boxes": "box", "masks": "mask"}

Bits = NDArray[np.bool_]
Place = tuple[int, int]  # x, y
Box = tuple[int, int, int, int]  # x0, y0, x1, y1, the last two exclusive


@dataclass(frozen=True)
class Classes:
    """names: what to look for; a class that stands for everything else is added by the model's own rule.

    task: `panoptic`: every pixel belongs to one thing, to one stuff class, or to nothing. `instance`: scored
    objects that may overlap, of all classes. `semantic`: one class a pixel. things: the classes with countable
    objects, by default all; panoptic joins all regions of any other class. min_score: instance leaves out objects
    below it.
    """

    names: Sequence[str]
    task: str = "panoptic"
    things: Iterable[str] | None = None
    min_score: float = 0.0

    def __post_init__(self) -> None:
        names = _texts(self.names, "class name", 'Classes(["person", "sky"])')
        if len(names) > CLASSES_MAX:
            raise InputError(f"{len(names):,} classes were given; a prompt takes at most {CLASSES_MAX:,}.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"the class {twice[0]!r} is given more than once. Name each class once.")
        if self.task not in TASKS:
            raise InputError(f"the task for classes is {self.task!r}. Choose one of: {', '.join(TASKS)}.")
        things = names if self.things is None else tuple(self.things)
        unknown = [thing for thing in things if thing not in names]
        if isinstance(self.things, str) or unknown:
            what = self.things if isinstance(self.things, str) else unknown[0]
            raise InputError(f"things names {what!r}, which is not among the classes. List classes only.")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"min_score is {self.min_score}. Give a score from 0 to 1.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "things", frozenset(things))

    def is_thing(self, index: int) -> bool:
        return self.names[index] in (self.things or ())


@dataclass(frozen=True)
class Refer:
    """text: a sentence, or several sentences about the same thing.

    several: everything that fits well, and the best one where nothing does. none_below: with a best score below
    it, the answer is empty (by default it never is).
    """

    text: str | Sequence[str]
    several: bool = False
    none_below: float = 0.0

    def __post_init__(self) -> None:
        texts = (self.text,) if isinstance(self.text, str) else self.text
        object.__setattr__(self, "text", _texts(texts, "sentence", 'Refer("the red mug")'))
        if not 0 <= self.none_below <= 1:
            raise InputError(f"none_below is {self.none_below}. Give a score from 0 to 1.")

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(self.text)


@dataclass(frozen=True, eq=False)
class Regions:
    """Where to look, one object a region; the answers keep this order: points, scribbles, boxes, masks.

    points, scribbles: for each region one x, y, a list of them, or a mask (H, W) of the pixels touched; a
    scribble's places are joined by lines. boxes: x0, y0, x1, y1, the last two exclusive. masks: (H, W), true or
    not 0 inside.
    """

    points: Sequence[Any] = ()
    scribbles: Sequence[Any] = ()
    boxes: Sequence[Any] = ()
    masks: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for kind in ("points", "scribbles"):
            object.__setattr__(self, kind, tuple(_touched(item, kind) for item in getattr(self, kind)))
        object.__setattr__(self, "boxes", tuple(_box(item) for item in self.boxes))
        object.__setattr__(self, "masks", tuple(_mask(item, "masks") for item in self.masks))
        if not 1 <= len(self) <= REGIONS_MAX:
            raise InputError(
                f"{len(self)} regions were given. Give 1 to {REGIONS_MAX}, for example Regions(points=[(120, 80)])."
            )

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS)

    def each(self) -> list[tuple[str, Any]]:
        """(kind, region) in the order of the answers."""
        return [(kind, item) for kind in KINDS for item in getattr(self, kind)]


@dataclass(frozen=True, eq=False)
class Track:
    """Objects marked by `regions` on the picture (or frame) `first`, to be found in another picture."""

    first: Any
    regions: Regions

    def __post_init__(self) -> None:
        if not isinstance(self.regions, Regions):
            raise InputError(
                f"Track takes Regions, not {type(self.regions).__name__}. Mark the objects first."
            )


Query = Classes | Refer | Regions | Track


def query_in_words(query: str | Query) -> str:
    """One line for a reader."""
    if isinstance(query, str):
        return query
    if isinstance(query, Classes):
        count = len(query.names)
        names = ", ".join(query.names[:NAMES_SHOWN]) + (", …" if count > NAMES_SHOWN else "")
        return f"{query.task}, {count} class{'es' * (count > 1)}: {names}"
    if isinstance(query, Refer):
        return " / ".join(query.sentences) + (" (several)" if query.several else "")
    regions = query.regions if not isinstance(query, Regions) else query
    return ", ".join(KINDS[kind] + _place(item) for kind, item in regions.each())


def refuse(query: object, family: str, known: Mapping[str, str]) -> InputError:
    """The error for a question that a family does not answer. known: what it does take -> how it is written."""
    ways = ", ".join(f"{what} ({example})" for what, example in known.items())
    name = f"{type(query).__name__} query" if isinstance(query, Query) else f"{type(query).__name__}"
    return InputError(f"a {family} bundle cannot answer a {name}. It takes {ways}.")


def _texts(texts: object, what: str, example: str) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"a list of {what}s is needed, not {texts!r}. For example: {example}.")
    found = tuple(texts)
    if not found:
        raise InputError(f"no {what} was given. For example: {example}.")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{text!r} is no {what}. For example: {example}.")
    return tuple(text.strip() for text in found)


def _touched(item: Any, kind: str) -> Bits | tuple[Place, ...]:
    """A mask of the pixels touched, or their places."""
    if isinstance(item, np.ndarray) and item.ndim == 2 and (item.dtype == np.bool_ or item.shape[1] != 2):
        return _mask(item, kind)
    try:
        places = np.asarray(item, np.float64)
        places = places.reshape(1, 2) if places.shape == (2,) else places
        good = (
            places.ndim == 2 and places.shape[1] == 2 and len(places) > 0 and bool(np.isfinite(places).all())
        )
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise InputError(f"one of the {kind} is {item!r:.60}. Give x, y or a list of them.")
    return tuple((int(x), int(y)) for x, y in np.floor(places))


def _box(item: Any) -> Box:
    try:
        edges = np.asarray(item, np.float64)
        good = edges.shape == (4,) and bool(np.isfinite(edges).all())
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good or edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise InputError(f"a box is {item!r:.60}. Give x0, y0, x1, y1 with x1 above x0 and y1 above y0.")
    x0, y0, x1, y1 = (int(edge) for edge in (*np.floor(edges[:2]), *np.ceil(edges[2:])))
    return x0, y0, x1, y1


def _mask(item: Any, kind: str) -> Bits:
    mask = np.asarray(item)
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        raise InputError(
            f"one of the {kind} has shape {mask.shape}. Give a mask (H, W) of the picture's size."
        )
    inside = np.asarray(mask != 0)
    if not inside.any():
        raise InputError(f"one of the {kind} is empty. Mark at least one pixel.")
    return inside


def _place(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return ""
    places = item if isinstance(item[0], tuple) else (item,)
    return (
        " " + " ".join(",".join(map(str, place)) for place in places[:4]) + ("…" if len(places) > 4 else "")
    )
