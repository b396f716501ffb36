"""What a question is, and the words that all kinds of questions share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pixelrt_export.tiny.things import COLOURS, SHAPES, Thing

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


def bearers(things: Sequence[Thing], name: str) -> list[Thing]:
    return [thing for thing in things if thing.name == name]


def absent_name(things: Sequence[Thing], rng: random.Random) -> str:
    """A name not in the scene; mostly one whose colour or shape something there has (the hard case)."""
    while True:
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if rng.random() < 0.4:
            colour = rng.choice(things).colour
        elif rng.random() < 0.6:
            shape = rng.choice(things).shape
        if not bearers(things, f"{colour} {shape}"):
            return f"{colour} {shape}"


def worded(rng: random.Random, wanted: str, plural: bool = False) -> str:
    """The first wording is the most frequent one."""
    wordings = PLURAL_WORDINGS if plural else WORDINGS
    return wordings[0 if rng.random() < 0.2 else rng.randrange(len(wordings))].format(wanted)
