"""Questions about a scene with their one right answer and the targets in the order of its [SEG] marks.

Kinds: `named` ("Segment the red circle."), `pair` (two names), `texture` ("the striped shapes"), `refusal` (a name or
texture that is not there), `several` (three names), `group` ("the circles"), `size` ("the largest shape"), `side`
("the star on the left"), `relation` ("the star to the left of the red circle"), `count` and `colour` (answered in
words), `unknown` ("the elephant", "the pink star": refused). An answer depends on what is asked, never on the wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from pixelrt_export.tiny.relations import Phrase, groups, relations, sides, sizes
from pixelrt_export.tiny.things import COLOURS, NUMBERS, SHAPES, STRANGE_COLOURS, STRANGERS, Thing, plural_of
from pixelrt_export.tiny.wording import Question, absent_name, bearers, listed, shown, worded


def named(things: Sequence[Thing], rng: random.Random) -> Question:
    """One name; all objects that bear it, left to right."""
    repeated = [t for t in things if len(bearers(things, t.name)) > 1]
    thing = rng.choice(repeated if repeated and rng.random() < 0.5 else things)
    found = bearers(things, thing.name)
    return Question("named", worded(rng, f"the {thing.name}"), shown([t.name for t in found]), tuple(found))


def pair(things: Sequence[Thing], rng: random.Random) -> Question:
    """Two different names in the order asked; one of them may be absent."""
    first = rng.choice(things).name
    others = sorted({t.name for t in things} - {first})
    present = bool(others) and rng.random() > 0.25
    second = rng.choice(others) if present else absent_name(things, rng)
    asked = [first, second] if present or rng.random() < 0.5 else [second, first]
    found = [thing for name in asked for thing in bearers(things, name)]
    answer = shown([t.name for t in found]) + ("" if present else f" There is no {second}.")
    return Question("pair", worded(rng, f"the {asked[0]} and the {asked[1]}", True), answer, tuple(found))


def texture(things: Sequence[Thing], rng: random.Random) -> Question:
    """All striped or all dotted objects, left to right, by their names."""
    here = sorted({t.texture for t in things} - {"plain"})
    if not here:
        return named(things, rng)
    wanted = rng.choice(here)
    found = [t for t in things if t.texture == wanted]
    return Question(
        "texture", worded(rng, f"the {wanted} shapes", True), shown([t.name for t in found]), tuple(found)
    )


def refusal(things: Sequence[Thing], rng: random.Random) -> Question:
    """A name or a texture that is not there."""
    gone = sorted({"striped", "dotted"} - {t.texture for t in things})
    if gone and rng.random() < 0.25:
        wanted = rng.choice(gone)
        return Question(
            "refusal", worded(rng, f"the {wanted} shapes", True), f"There are no {wanted} shapes.", ()
        )
    name = absent_name(things, rng)
    return Question("refusal", worded(rng, f"the {name}"), f"There is no {name}.", ())


def several(things: Sequence[Thing], rng: random.Random) -> Question | None:
    """Three different names in any order; all objects that bear them."""
    names = sorted({t.name for t in things})
    if len(names) < 3:
        return None
    asked = rng.sample(names, 3)
    found = [thing for name in asked for thing in bearers(things, name)]
    text = worded(rng, listed([f"the {name}" for name in asked]), True)
    return Question("several", text, shown([t.name for t in found]), tuple(found))


def group(things: Sequence[Thing], rng: random.Random) -> Question:
    """All of one shape, of one colour or of one name in the plural; sometimes there are none."""
    if rng.random() < 0.15:
        wanted = plural_of(_absent(things, rng))
        return Question("group", worded(rng, f"the {wanted}", True), f"There are no {wanted}.", ())
    called = {call: found for call, found in groups(things).items() if call != "shape"}
    many = [call for call, found in called.items() if len(found) > 1]
    wanted = rng.choice(many if many and rng.random() < 0.8 else list(called))
    found = called[wanted]
    text = worded(rng, f"the {plural_of(wanted)}", True)
    return Question("group", text, shown([t.name for t in found]), tuple(found))


def _absent(things: Sequence[Thing], rng: random.Random) -> str:
    """A shape, 'red shape' or a name that is not there."""
    here = groups(things)
    vague = [call for call in (*SHAPES, *(f"{colour} shape" for colour in COLOURS)) if call not in here]
    return rng.choice(vague) if vague and rng.random() < 0.5 else absent_name(things, rng)


def _picked(kind: str, phrases: list[Phrase], rng: random.Random) -> Question | None:
    if not phrases:
        return None
    text, thing = rng.choice(phrases)
    return Question(kind, worded(rng, f"the {text}"), shown([thing.name]), (thing,))


def size(things: Sequence[Thing], rng: random.Random) -> Question | None:
    return _picked("size", sizes(things), rng)


def side(things: Sequence[Thing], rng: random.Random) -> Question | None:
    return _picked("side", sides(things), rng)


def relation(things: Sequence[Thing], rng: random.Random) -> Question | None:
    return _picked("relation", relations(things), rng)


def count(things: Sequence[Thing], rng: random.Random) -> Question:
    """How many there are of a shape, a colour, a name or a texture, or of all; in words, without a mask."""
    here = groups(things)
    for texture in sorted({t.texture for t in things} - {"plain"}):
        here[f"{texture} shape"] = [t for t in things if t.texture == texture]
    if rng.random() < 0.2:
        call, number = _absent(things, rng), 0
    else:
        # One number is as likely as the next, where the scene has it: most calls fit a single thing.
        number = rng.choice(sorted({len(found) for found in here.values()}))
        call = rng.choice([call for call, found in here.items() if len(found) == number])
    asked = plural_of(call)
    text = rng.choice(
        ("How many {} are there?", "How many {} are there in this image?", "Count the {}.")
    ).format(asked)
    words = f"is {NUMBERS[number]} {call}" if number == 1 else f"are {NUMBERS[number]} {asked}"
    return Question("count", text, f"There {words}.", ())


def colour(things: Sequence[Thing], rng: random.Random) -> Question:
    """The colour of the one thing, or of all things, of a shape; of the largest, or the outermost; in words."""
    wanted = rng.choice((*SHAPES, *sorted({t.shape for t in things})))
    found = [t for t in things if t.shape == wanted]
    phrases = [(text, t) for text, t in (*sizes(things), *sides(things)) if t.colour not in text.split()]
    if phrases and rng.random() < 0.3:
        wanted, thing = rng.choice(phrases)
        found = [thing]
    many = len(found) > 1
    text = rng.choice(
        ("What colours are the {}?", "Tell me the colours of the {}.")
        if many
        else ("What colour is the {}?", "What color is the {}?", "Tell me the colour of the {}.")
    ).format(plural_of(wanted) if many else wanted)
    if not found:
        return Question("colour", text, f"There is no {wanted}.", ())
    told = listed(list(dict.fromkeys(t.colour for t in found)))
    return Question("colour", text, f"They are {told}." if many else f"It is {told}.", ())


def unknown(things: Sequence[Thing], rng: random.Random) -> Question:
    """Something that no scene shows, or a shape in a colour that none has."""
    wanted = rng.choice(STRANGERS)
    if rng.random() < 0.4:
        wanted = f"{rng.choice(STRANGE_COLOURS)} {rng.choice(things).shape}"
    return Question("unknown", worded(rng, f"the {wanted}"), f"There is no {wanted}.", ())


KINDS: dict[str, Callable[[Sequence[Thing], random.Random], Question | None]] = {
    "named": named,
    "pair": pair,
    "texture": texture,
    "refusal": refusal,
    "several": several,
    "group": group,
    "size": size,
    "side": side,
    "relation": relation,
    "count": count,
    "colour": colour,
    "unknown": unknown,
}

# Kind -> how often it is drawn. The first four, on which all others rest, are nearly half of the questions. Only a
# third of the scenes allow a relation, so that about one question in twenty is one.
MIX = {
    "named": 0.14,
    "pair": 0.13,
    "texture": 0.08,
    "refusal": 0.1,
    "several": 0.05,
    "group": 0.07,
    "size": 0.06,
    "side": 0.06,
    "relation": 0.13,
    "count": 0.08,
    "colour": 0.06,
    "unknown": 0.04,
}

# Of a run that goes on from a finished one: more of what needs every thing of a name to be seen.
MIX_AFTER = MIX | {
    "pair": 0.24,
    "texture": 0.11,
    "refusal": 0.08,
    "several": 0.10,
    "group": 0.08,
    "size": 0.04,
    "side": 0.03,
    "relation": 0.05,
    "colour": 0.03,
    "unknown": 0.02,
}


def question(
    things: Sequence[Thing],
    rng: random.Random,
    kind: str | None = None,
    mix: Mapping[str, float] = MIX,
) -> Question:
    """A random question. kind: which; where a scene allows none of it, the question is a `named` one."""
    if kind:
        return KINDS[kind](things, rng) or named(things, rng)
    while True:
        drawn = KINDS[rng.choices(list(mix), list(mix.values()))[0]](things, rng)
        if drawn:
            return drawn


def caption(things: Sequence[Thing]) -> Question:
    """All that is there, left to right, no masks: a training row in which every word depends on the image."""
    parts = [f"a {'' if t.texture == 'plain' else t.texture + ' '}{t.name}" for t in things]
    return Question("caption", "What is in this image?", f"There is {listed(parts)}.", ())
