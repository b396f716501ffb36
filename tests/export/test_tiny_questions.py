"""Every question is answered again, by reading its English and looking at the scene."""

from __future__ import annotations

import random
import re
from collections import Counter

from pixelrt_export.tiny import psalm_prompts as prompts
from pixelrt_export.tiny.questions import KINDS, MIX, caption, question
from pixelrt_export.tiny.samples import LONG_SIDE, SAMPLES, SEED_BASE
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import (
    COLOURS,
    SHAPES,
    STRANGE_COLOURS,
    STRANGERS,
    TEXTURES,
    Scene,
    Thing,
    plural_of,
)
from pixelrt_export.tiny.wording import PLURAL_WORDINGS, WORDINGS, Question

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
WORDS = {*COLOURS, *SHAPES, *TEXTURES, "shape", *STRANGERS, *STRANGE_COLOURS}


def singular(call: str) -> str:
    last = call.split()[-1]
    one = {**{plural_of(s): s for s in SHAPES}, "shapes": "shape"}
    return call.removesuffix(last) + one.get(last, last)


def bearing(things: tuple[Thing, ...], call: str) -> list[Thing]:
    """Those of which every word is true."""
    words = singular(call).split()
    assert set(words) <= WORDS, call
    return [t for t in things if all(w in ("shape", t.shape, t.colour, t.texture) for w in words)]


def meant(drawn: Scene, phrase: str) -> list[Thing]:
    """What 'the ...' means, left to right."""
    things, phrase = drawn.things, phrase.removeprefix("the ")
    if m := re.fullmatch(r"(largest|smallest) (.+)", phrase):
        group = sorted(bearing(things, m[2]), key=lambda t: t.radius)
        shown = sorted(group, key=lambda t: drawn.mask(t).sum())
        assert len(group) > 1 and group[0] is not group[-1]
        end = -1 if m[1] == "largest" else 0
        assert group[end] is shown[end]  # though parts are hidden, it also looks so
        return [group[end]]
    if m := re.fullmatch(r"shape on the far (left|right)", phrase):
        return [things[0 if m[1] == "left" else -1]]
    if m := re.fullmatch(r"(.+) on the (left|right)", phrase):
        two = bearing(things, m[1])
        assert len(two) == 2
        return two[:1] if m[2] == "left" else two[1:]
    if m := re.fullmatch(r"(.+) to the (left|right) of the (.+)", phrase):
        (anchor,) = bearing(things, m[3])
        group = [t for t in bearing(things, m[1]) if t is not anchor]
        return [t for t in group if (t.x < anchor.x) == (m[2] == "left")]
    return bearing(things, phrase)


def core(text: str) -> str | None:
    """'the red circle' of 'Could you outline the red circle for me?'"""
    found = set()
    for wording in (*WORDINGS, *PLURAL_WORDINGS):
        m = re.fullmatch(re.escape(wording).replace(r"\{\}", "(the .+)"), text)
        found |= {m[1]} if m else set()
    return min(found, key=len) if found else None


def answer_again(drawn: Scene, q: Question) -> tuple[str, list[Thing]]:
    things = drawn.things
    if m := re.fullmatch(r"(?:How many (.+?) are there(?: in this image)?\?|Count the (.+)\.)", q.text):
        call = m[1] or m[2]
        number = len(bearing(things, call))
        word = next(w for w, n in NUMBERS.items() if n == number)
        return f"There is {word} {singular(call)}." if number == 1 else f"There are {word} {call}.", []
    if m := re.fullmatch(r"(?:What colou?rs? (?:is|are)|Tell me the colours? of) (the .+)[?.]", q.text):
        found = meant(drawn, m[1])
        many = m[1] != singular(m[1])
        assert many == (len(found) > 1)
        if not found:
            return f"There is no {m[1].removeprefix('the ')}.", []
        said = list(dict.fromkeys(t.colour for t in found))
        told = " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
        return f"They are {told}." if many else f"It is {told}.", []
    wanted = core(q.text)
    assert wanted, q.text
    asked = re.split(r", (?=the )| and (?=the )", wanted)
    found = [meant(drawn, phrase) for phrase in asked]
    targets = [t for each in found for t in each]
    parts = [f"the {t.name} [SEG]" for t in targets]
    said = "Sure, " + " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) + "." if parts else ""
    for phrase, each in zip(asked, found, strict=True):
        call = phrase.removeprefix("the ")
        if not each:
            said += f" There are no {call}." if call != singular(call) else f" There is no {call}."
    return said.strip(), targets


def test_questions_have_the_answer_that_their_words_have() -> None:
    seen: Counter[str] = Counter()
    for seed in range(250):
        drawn, rng = scene(seed), random.Random(seed)
        for kind in KINDS:
            q = question(drawn.things, rng, kind)
            seen[q.kind] += q.kind == kind
            text, targets = answer_again(drawn, q)
            assert q.answer == text, (seed, q)
            assert list(q.targets) == targets, (seed, q)
            assert q.answer.count("[SEG]") == len(q.targets)
    assert set(seen) == set(KINDS) == set(MIX)
    assert min(seen.values()) > 20, seen


def test_english() -> None:
    """Articles, plurals, sentences that begin large and end with a point."""
    rng, answers = random.Random(0), Counter()
    for seed in range(200):
        things = scene(seed).things
        for q in (caption(things), *(question(things, rng) for _ in range(6))):
            for text in (q.text, q.answer):
                assert text[0].isupper() and text[-1] in ".?" and "  " not in text and " ." not in text, text
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|crosss|\bcrosses? (?:is|was)\b", text), text
            answers[q.answer] += 1
    assert plural_of("red cross") == "red crosses" and plural_of("striped shape") == "striped shapes"
    assert len(answers) > 300


def test_the_mix_is_kept() -> None:
    """Each kind comes about as often as it should; what a scene has not, another kind makes up for."""
    rng, scenes = random.Random(3), [scene(seed).things for seed in range(90)]
    kinds = Counter(question(things, rng).kind for things in scenes for _ in range(20))
    for kind, share in MIX.items():
        # A texture that is not there becomes a name; relations need three things and clear sides.
        assert share / 7 < kinds[kind] / 1800 < share + 0.06, kind
    assert abs(sum(MIX.values()) - 1) < 1e-9


def test_sentences_mean_what_they_say() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        drawn = scene(seed)
        for kind, said in prompts.expressions(drawn.things).items():
            for text, things in said:
                seen[kind] += 1
                assert meant(drawn, text) == list(things), (seed, text)
                assert len(things) == {"none": 0}.get(kind, 1) or (kind == "several" and len(things) > 1)
        asked = prompts.sentence(drawn.things, random.Random(seed))
        assert asked is not None and {0} >= {n for numbers in asked.answers.values() for n in numbers}
    assert set(seen) == set(prompts.MIX) and min(seen.values()) > 15, seen


def test_the_samples_ask_what_fits() -> None:
    """Each has the answer that its comment says, or one at all."""
    for seed, prompt in SAMPLES.items():
        drawn = scene(SEED_BASE + seed, LONG_SIDE)
        said, targets = answer_again(drawn, Question("", prompt, "", ()))
        refused = {"Where is the green circle", "Can you segment the blue square", "How many", "What colour"}
        assert bool(targets) != any(prompt.startswith(text) for text in refused), prompt
        assert said.startswith("There is no") == prompt.startswith(("Where is", "Can you")), prompt
