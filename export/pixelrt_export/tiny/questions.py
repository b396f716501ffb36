"""Questions about a scene with their one right answer and the targets in the order of its [SEG] marks.

Four kinds: `named` ("Segment the red circle."), `pair` (two names), `texture` ("the striped shapes") and
`refusal` (a name or texture that is not there). An answer depends on what is asked, never on the wording.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pixelrt_export.tiny.scenes import COLOURS, SHAPES, Thing

KINDS = ("named", "pair", "texture", "refusal")
WORDINGS = (
    "Segment {}.",
    "Please segment {}.",
    "Can you segment {} in this image?",
    "Where is {}? Please respond with segmentation mask.",
    "Show me {}.",
    "Find {} in the image.",
    "What is {} in this image? Please output segmentation mask.",
    "Could you outline {} for me?",
)
PLURAL_WORDINGS = tuple(w.replace("Where is", "Where are").replace("What is", "What are") for w in WORDINGS)
SEG = "[SEG]"


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str  # with [SEG] where a mask stands
    targets: tuple[Thing, ...]


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def shown(names: Sequence[str]) -> str:
    return "Sure, " + listed([f"the {name} {SEG}" for name in names]) + "."


def _bearers(things: Sequence[Thing], name: str) -> list[Thing]:
    return [thing for thing in things if thing.name == name]


def _absent_name(things: Sequence[Thing], rng: random.Random) -> str:
    """A name not in the scene; mostly one whose colour or shape something there has (the hard case)."""
    while True:
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if rng.random() < 0.4:
            colour = rng.choice(things).colour
        elif rng.random() < 0.6:
            shape = rng.choice(things).shape
        if not _bearers(things, f"{colour} {shape}"):
            return f"{colour} {shape}"


def _wording(rng: random.Random, wanted: str, plural: bool = False) -> str:
    """The first wording is the most frequent one."""
    wordings = PLURAL_WORDINGS if plural else WORDINGS
    return wordings[0 if rng.random() < 0.2 else rng.randrange(len(wordings))].format(wanted)


def named(things: Sequence[Thing], rng: random.Random) -> Question:
    """One name; all objects that bear it, left to right."""
    repeated = [t for t in things if len(_bearers(things, t.name)) > 1]
    thing = rng.choice(repeated if repeated and rng.random() < 0.5 else things)
    found = _bearers(things, thing.name)
    return Question("named", _wording(rng, f"the {thing.name}"), shown([t.name for t in found]), tuple(found))


def pair(things: Sequence[Thing], rng: random.Random) -> Question:
    """Two different names in the order asked; one of them may be absent."""
    first = rng.choice(things).name
    others = sorted({t.name for t in things} - {first})
    present = bool(others) and rng.random() > 0.25
    second = rng.choice(others) if present else _absent_name(things, rng)
    asked = [first, second] if present or rng.random() < 0.5 else [second, first]
    found = [thing for name in asked for thing in _bearers(things, name)]
    answer = shown([t.name for t in found]) + ("" if present else f" There is no {second}.")
    return Question("pair", _wording(rng, f"the {asked[0]} and the {asked[1]}", True), answer, tuple(found))


def texture(things: Sequence[Thing], rng: random.Random) -> Question:
    """All striped or all dotted objects, left to right, by their names."""
    here = sorted({t.texture for t in things} - {"plain"})
    if not here:
        return named(things, rng)
    wanted = rng.choice(here)
    found = [t for t in things if t.texture == wanted]
    return Question(
        "texture", _wording(rng, f"the {wanted} shapes", True), shown([t.name for t in found]), tuple(found)
    )


def refusal(things: Sequence[Thing], rng: random.Random) -> Question:
    """A name or a texture that is not there."""
    gone = sorted({"striped", "dotted"} - {t.texture for t in things})
    if gone and rng.random() < 0.25:
        wanted = rng.choice(gone)
        return Question(
            "refusal", _wording(rng, f"the {wanted} shapes", True), f"There are no {wanted} shapes.", ()
        )
    name = _absent_name(things, rng)
    return Question("refusal", _wording(rng, f"the {name}"), f"There is no {name}.", ())


def question(things: Sequence[Thing], rng: random.Random, kind: str | None = None) -> Question:
    """A random question; `kind` fixes which (a texture question becomes a named one where all is plain)."""
    kind = kind or rng.choices(KINDS, (0.36, 0.26, 0.19, 0.19))[0]
    return {"named": named, "pair": pair, "texture": texture, "refusal": refusal}[kind](things, rng)


def caption(things: Sequence[Thing]) -> Question:
    """All that is there, left to right, no masks: a training row in which every word depends on the image."""
    parts = [f"a {'' if t.texture == 'plain' else t.texture + ' '}{t.name}" for t in things]
    return Question("caption", "What is in this image?", f"There is {listed(parts)}.", ())
