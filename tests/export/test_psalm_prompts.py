"""What the small PSALM is asked about a scene."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from pixelrt_export.tiny import psalm_prompts as prompts
from pixelrt_export.tiny.psalm_checkpoint import SIDE
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import COLOURS


def test_class_lists_name_what_they_answer() -> None:
    rng, kinds = random.Random(0), set()
    for seed in range(60):
        things = scene(seed, SIDE).things
        for _ in range(4):
            asked = prompts.classes(things, rng)
            assert asked.texts[-1] == "background" and len({*asked.texts}) == len(asked.texts)
            listed = {*asked.texts[:-1]}
            for thing in things:
                fits = listed & {thing.name, thing.shape, f"{thing.colour} shape"}
                assert {asked.texts[k] for k in asked.answers.get(thing.label, ())} == fits
            kinds.add(len(listed))
    assert {30, 5, 6} <= kinds


def test_a_drawn_sentence_is_one_of_them() -> None:
    rng = random.Random(3)
    for seed in range(40):
        things = scene(seed, SIDE).things
        asked = prompts.sentence(things, rng)
        said = {text: meant for each in prompts.expressions(things).values() for text, meant in each}
        text = asked.texts[0]
        meant = said[text if text.startswith("the ") else f"the {text}"]
        assert set(asked.answers) == {t.label for t in meant}
    assert prompts.plural_of("red cross") == "red crosses"
    assert len(prompts.NAMES) == 5 * len(COLOURS)


def test_marks_touch_what_they_mark() -> None:
    rng = random.Random(0)
    for seed in range(20):
        drawn = scene(seed, SIDE)
        asked = prompts.regions(drawn.things, drawn.labels, rng)
        assert 1 <= len(asked.regions) <= 4
        assert sorted(k for numbers in asked.answers.values() for k in numbers) == [
            *range(len(asked.regions))
        ]
        for thing in drawn.things:
            inside = drawn.mask(thing)
            marks = {kind: prompts.mark(inside, kind, rng) for kind in prompts.MARKS}
            assert (marks["mask"] == inside).all() and (marks["box"] | ~inside).all()
            assert (marks["point"] & inside).any() and marks["point"].sum() <= 317
            assert (marks["scribble"] & inside).any()
