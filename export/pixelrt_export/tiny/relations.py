"""Phrases that pick one thing out by comparing it with others: the largest circle, the star to the left of ...

Each is clear to a person: sizes differ by a quarter, sides by more than half of the two radii together. What is nearly
so is not said. Things are given left to right.
"""

from __future__ import annotations

from collections.abc import Sequence

from pixelrt_export.tiny.things import Thing

# Radius against the next. With it the largest thing shows more than any other even where most that may be of it is
# hidden (`scenes.LEAST_VISIBLE`): 1.25 ** 2 * 0.65 > 1.
LARGER = 1.25
ASIDE = 0.6  # between centres, of the sum of both radii

Phrase = tuple[str, Thing]


def kinds_of(thing: Thing) -> tuple[str, str, str]:
    """What it may be called, from the vaguest to its name."""
    return "shape", thing.shape, thing.name


def groups(things: Sequence[Thing]) -> dict[str, list[Thing]]:
    """Every call that fits something -> what it fits: 'shape', 'circle', 'red shape', 'red circle'."""
    found: dict[str, list[Thing]] = {}
    for thing in things:
        for call in (*kinds_of(thing), f"{thing.colour} shape"):
            found.setdefault(call, []).append(thing)
    return found


def sizes(things: Sequence[Thing]) -> list[Phrase]:
    """The largest and the smallest of each group of two and more."""
    found = []
    for call, bearers in groups(things).items():
        by_size = sorted(bearers, key=lambda t: t.radius)
        if len(by_size) > 1 and by_size[-1].radius > LARGER * by_size[-2].radius:
            found.append((f"largest {call}", by_size[-1]))
        if len(by_size) > 1 and by_size[1].radius > LARGER * by_size[0].radius:
            found.append((f"smallest {call}", by_size[0]))
    return found


def to_the_left(a: Thing, b: Thing) -> bool:
    """Whether a person would say that a is to the left of b."""
    apart = b.x - a.x
    return apart > ASIDE * (a.radius + b.radius) and abs(b.y - a.y) < 3 * apart


def sides(things: Sequence[Thing]) -> list[Phrase]:
    """The left and the right one of two that are called the same, and the outermost of all."""
    found = []
    for call, bearers in groups(things).items():
        if call == "shape" or len(bearers) != 2 or not to_the_left(*bearers):
            continue
        found += [(f"{call} on the left", bearers[0]), (f"{call} on the right", bearers[1])]
    for side, one, next_one in (("left", things[0], things[1]), ("right", things[-1], things[-2])):
        if abs(one.x - next_one.x) > ASIDE * (one.radius + next_one.radius):
            found.append((f"shape on the far {side}", one))
    return found


def relations(things: Sequence[Thing]) -> list[Phrase]:
    """'circle to the left of the red star': one star, one circle left of it, and no circle where it is not clear.

    Only where another circle lies on the other side: else the relation would say nothing.
    """
    called, found = groups(things), []
    for anchor in things:
        if len(called[anchor.name]) > 1:
            continue
        for call, bearers in called.items():
            others = [t for t in bearers if t is not anchor]
            left = [t for t in others if to_the_left(t, anchor)]
            right = [t for t in others if to_the_left(anchor, t)]
            if len(left) + len(right) < len(others) or not left or not right:
                continue
            for side, there in (("left", left), ("right", right)):
                if len(there) == 1:
                    found.append((f"{call} to the {side} of the {anchor.name}", there[0]))
    return found
