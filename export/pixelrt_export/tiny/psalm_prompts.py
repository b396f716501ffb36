"""What PSALM can be asked about a scene: class lists, sentences, and regions, each with its right answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pixelrt.families.psalm_regions import discs, rasterised

from pixelrt_export.tiny.relations import relations, sides, sizes
from pixelrt_export.tiny.things import COLOURS, SHAPES, STRANGERS, Thing, plural_of

NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
BACKGROUND = "background"
KINDS = ("class", "sentence", "region")
MARKS = ("point", "scribble", "box", "mask")
# Kind of a sentence -> how often it is drawn, where a scene allows it.
MIX = {
    "name": 0.3,
    "texture": 0.1,
    "shape": 0.08,
    "colour": 0.07,
    "side": 0.11,
    "size": 0.08,
    "relation": 0.12,
    "several": 0.08,
    "none": 0.06,
}


@dataclass(frozen=True)
class Asked:
    """One prompt. answers: label of a thing -> numbers of the conditions that it answers."""

    kind: str
    texts: tuple[str, ...]  # class names with the background, or the sentence; empty for regions
    answers: dict[int, tuple[int, ...]]
    regions: tuple[np.ndarray, ...] = ()  # (H, W) bool
    marked_in: int | None = None  # image of the batch that the regions mark; by default the one asked about


def classes(things: Sequence[Thing], rng: random.Random) -> Asked:
    """All 30 names, or some of them with distractors, or only shapes, or only colours; in any order."""
    draw = rng.random()
    if draw < 0.4:
        names, named = list(NAMES), {t.label: t.name for t in things}
    elif draw < 0.8:
        named = {t.label: t.name for t in things}
        here = sorted(set(named.values()))
        absent = [name for name in NAMES if name not in here]
        names = [name for name in here if rng.random() < 0.85] + rng.sample(absent, rng.randint(1, 12))
    elif draw < 0.92:
        names, named = list(SHAPES), {t.label: t.shape for t in things}
    else:
        names, named = (
            [f"{colour} shape" for colour in COLOURS],
            {t.label: f"{t.colour} shape" for t in things},
        )
    rng.shuffle(names)
    answers = {label: (names.index(name),) for label, name in named.items() if name in names}
    return Asked("class", (*names, BACKGROUND), answers)


def expressions(things: Sequence[Thing]) -> dict[str, list[tuple[str, tuple[Thing, ...]]]]:
    """Every expression that fits, by kind: the words and the things meant. things: left to right."""
    found: dict[str, list[tuple[str, tuple[Thing, ...]]]] = {kind: [] for kind in MIX}
    groups: dict[tuple[str, str], list[Thing]] = {}
    for thing in things:
        called = {"name": thing.name, "shape": thing.shape, "colour": f"{thing.colour} shape"}
        if thing.texture != "plain":
            called["texture"] = f"{thing.texture} {thing.name}"
            groups.setdefault(("all", f"{thing.texture} shape"), []).append(thing)
        for kind, name in called.items():
            groups.setdefault((kind, name), []).append(thing)
    for (kind, name), bearers in groups.items():
        if len(bearers) == 1 and kind != "all":
            found[kind].append((f"the {name}", (bearers[0],)))
        elif len(bearers) > 1 and kind != "texture":
            found["several"].append((f"the {plural_of(name)}", tuple(bearers)))
    compared = {"size": sizes(things), "side": sides(things), "relation": relations(things)}
    for kind, phrases in compared.items():
        found[kind] += [(f"the {text}", (thing,)) for text, thing in phrases]
    here = {t.name for t in things}
    absent = [name for name in NAMES if name not in here] + list(STRANGERS)
    found["none"] = [(f"the {name}", ()) for name in absent]
    return found


def sentence(things: Sequence[Thing], rng: random.Random, kind: str | None = None) -> Asked | None:
    """A random expression, of `kind` where given: None where the scene allows none of that kind."""
    found = expressions(things)
    kinds = [k for k in MIX if found[k] and kind in (None, k)]
    if not kinds:
        return None
    chosen = rng.choices(kinds, [MIX[k] for k in kinds])[0]
    text, meant = rng.choice(found[chosen])
    text = text.removeprefix("the ") if kind is None and rng.random() < 0.2 else text
    return Asked("sentence", (text,), {t.label: (0,) for t in meant})


def mark(inside: np.ndarray, kind: str, rng: random.Random) -> np.ndarray:
    """What a user might mark of a thing whose visible pixels are `inside` (H, W) bool."""
    rows, columns = np.nonzero(inside)

    def somewhere() -> tuple[int, int]:
        at = rng.randrange(len(rows))
        return int(columns[at]), int(rows[at])

    if kind == "point":
        touched = np.zeros_like(inside)
        x, y = somewhere()
        touched[y, x] = True
        return discs(touched, rng.randint(4, 10))
    if kind == "scribble":
        # The runtime paints with its own brush, whose size is of the picture, not of this one.
        line = rasterised("scribbles", tuple(somewhere() for _ in range(rng.randint(2, 3))), inside.shape, "")
        return line
    if kind == "box":
        height, width = inside.shape
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        x0, y0 = max(0, x0 - rng.randint(0, 3)), max(0, y0 - rng.randint(0, 3))
        x1, y1 = min(width, x1 + rng.randint(0, 3)), min(height, y1 + rng.randint(0, 3))
        box = np.zeros_like(inside)
        box[y0:y1, x0:x1] = True
        return box
    return inside


def regions(
    things: Sequence[Thing], labels: np.ndarray, rng: random.Random, kind: str | None = None
) -> Asked:
    """One to four marked things, some of them perhaps twice. labels (H, W): which pixel shows which thing."""
    chosen = [rng.choice(things) for _ in range(rng.randint(1, 4))]
    marks = tuple(mark(labels == t.label, kind or rng.choice(MARKS), rng) for t in chosen)
    answers: dict[int, tuple[int, ...]] = {}
    for number, thing in enumerate(chosen):
        answers[thing.label] = (*answers.get(thing.label, ()), number)
    return Asked("region", (), answers, marks)
