"""Several questions at once: which is about which picture, what runs how often, what is refused."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt import batch
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError
from pixelrt.families import pixellm_batch, psalm_batch
from pixelrt.families.psalm import Psalm
from pixelrt.prefix import Prefixes
from pixelrt.prompt import Prompt
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.segmenter import open_bundle

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (*shape, 3), np.uint8) for shape in [(60, 40), (40, 60), (50, 50)]]
OTHER_HEAD = "Look: <im_start><image><im_end>\nWhat is this? ASSISTANT:"
TOKENS = 7


class Counted:
    """An engine that keeps the first size of one input of each call."""

    def __init__(self, engine: Any, name: str) -> None:
        self.engine, self.name, self.sizes = engine, name, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, inputs: Any, into: Any = None) -> Any:
        self.sizes.append(inputs[self.name].shape[0])
        return self.engine(inputs, into)


def counted(segmenter: Any, targets: str) -> Any:
    """A twin that counts: `_encoder.sizes` pictures of each run, `_pixel_decoder.sizes` targets of each."""
    twin = copy.copy(segmenter)
    twin._encoder = Counted(segmenter._encoder, "pixels")
    twin._pixel_decoder = Counted(segmenter._pixel_decoder, targets)
    return twin


@pytest.fixture(scope="module")
def pixellm(golden_bundle_a: Path) -> Any:
    bundle = Bundle.read(golden_bundle_a)
    return open_bundle(bundle, OrtBackend(bundle))


@pytest.fixture(scope="module")
def growing(golden_bundle_a: Path) -> Any:
    """With the cache that becomes a new one in each step."""
    bundle = Bundle.read(golden_bundle_a)
    return open_bundle(bundle, OrtBackend(bundle, compatible=True))


@pytest.fixture(scope="module")
def alone(pixellm: Any) -> Any:
    """Number of a picture and prompt -> the answer to that question alone."""
    return cache(lambda picture, prompt: pixellm.segment(PICTURES[picture], prompt, TOKENS))


def same(answer: Any, alone: Any) -> None:
    assert (answer.token_ids, answer.finished, answer.text) == (alone.token_ids, alone.finished, alone.text)
    for mask, wanted in zip(answer.masks, alone.masks, strict=True):
        # Sums over tokens of other prompts, which are masked, may be added up in another order.
        np.testing.assert_allclose(mask.low_res_logits, wanted.low_res_logits, atol=1e-3)
        assert (mask.label, mask.span) == (wanted.label, wanted.span)


def test_which_question_is_about_which_picture() -> None:
    a, b = PICTURES[:2]
    for images, prompts, wanted in [
        (a, ["x", "y"], ([a], [0, 0], ["x", "y"])),
        ([a, b], "x", ([a, b], [0, 1], ["x", "x"])),
        ([a], ("x", "y"), ([a], [0, 0], ["x", "y"])),
        ([a, b, a], ["x", "y", "z"], ([a, b], [0, 1, 0], ["x", "y", "z"])),
        (["p.png", "q.png", "p.png"], "x", (["p.png", "q.png"], [0, 1, 0], ["x", "x", "x"])),
        (a, "x", ([a], [0], ["x"])),
        (a, [], ([], [], [])),
        ([], "x", ([], [], [])),
    ]:
        pictures, which, asked = batch.paired(images, prompts)
        assert all(got is want for got, want in zip(pictures, wanted[0], strict=True))
        assert (which, asked) == wanted[1:]
    for images, prompts in [([a, b], ["x", "y", "z"]), ([a, b], []), ([], ["x", "y"])]:
        with pytest.raises(InputError, match=r"There are \d images and \d prompts\. Give one image"):
            batch.paired(images, prompts)


def test_several_pictures_and_questions(pixellm: Any, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of three shapes in one run of the encoder, questions with two heads, one twice, one alone; then frames
    that are there, a few at once."""
    seg = counted(pixellm, "seg_hidden")
    about = [0, 1, 0, 2, 1, 0]
    prompts = ["What?", "Find it, please.", OTHER_HEAD, "Find it, please.", OTHER_HEAD, "What?"]
    wanted = [alone(picture, prompt) for picture, prompt in zip(about, prompts, strict=True)]
    answers = seg.segment_batch([PICTURES[picture] for picture in about], prompts, TOKENS)
    assert seg._encoder.sizes == [3]
    assert sum(seg._pixel_decoder.sizes) == sum(len(answer.masks) for answer in wanted) > 4
    assert len(seg._pixel_decoder.sizes) <= 3
    for answer, other in zip(answers, wanted, strict=True):
        same(answer, other)
        assert list(answer.timing) == list(other.timing)
    monkeypatch.setattr(pixellm_batch, "TOKENS_MAX", 150)
    monkeypatch.setattr(pixellm_batch, "TARGETS_MAX", 1)
    monkeypatch.setattr(batch, "PIXELS_MAX", 1)
    frames = seg.encode_batch(PICTURES[:2])
    assert seg._encoder.sizes == [3, 1, 1]
    for i, answer in enumerate(seg.segment_batch(frames, "Find it, please.", TOKENS)):
        same(answer, alone(i, "Find it, please."))


@pytest.mark.parametrize("spelling", ["pixellm", "growing"])
def test_one_pass_for_all(spelling: str, alone: Any, request: pytest.FixtureRequest) -> None:
    """All read in the passes of the longest; what was read of the picture serves the next question, alone or not."""
    loaded = request.getfixturevalue(spelling)
    frame, other = loaded.encode_batch(PICTURES[:2])
    prompts = ["What?", "Find it, please.", "What?"]
    seg = copy.copy(loaded)
    seg._language, seg.drafts = Counted(loaded._language, "logit_rows"), None
    seg.prefixes = Prefixes(seg._language)
    for _ in range(2):
        seg._language.sizes.clear()
        answers = seg.segment_batch(frame, prompts, TOKENS)
        assert len(seg._language.sizes) == max(answer.decoding.forwards for answer in answers)
        for answer, prompt in zip(answers, prompts, strict=True):
            same(answer, alone(0, prompt))
    same(seg.segment(frame, prompts[1], TOKENS), alone(0, prompts[1]))
    for i, answer in enumerate(seg.segment_batch([frame, other], prompts[1], TOKENS)):
        same(answer, alone(i, prompts[1]))
    same(seg.segment(frame, prompts[1], TOKENS), alone(0, prompts[1]))
    same(seg.segment_batch([frame, other], prompts[1], TOKENS)[0], alone(0, prompts[1]))
    same(seg.segment(other, prompts[1], TOKENS), alone(1, prompts[1]))
    seg.prefixes = None
    same(seg.segment_batch(frame, prompts[:2], TOKENS)[1], alone(0, prompts[1]))


def test_a_prompt_that_begins_with_a_target_is_asked_alone(pixellm: Any) -> None:
    """Its first token is predicted by the picture's last one."""
    frame = pixellm.encode(PICTURES[0])
    ids = pixellm.prompt("What?")
    named = Prompt(ids.head, [*pixellm.codebook.ids, *ids.tail])
    prompts = [ids, named, ids]
    answers = pixellm_batch.answered(pixellm, [frame] * 3, prompts, TOKENS, "complete")
    *_, wanted = pixellm.steps(frame, named, TOKENS, "complete")
    assert answers[1].token_ids == wanted.token_ids
    assert len(answers[1].masks) == len(wanted.targets(pixellm.codebook)) == len(answers[0].masks) + 1
    np.testing.assert_allclose(answers[1].targets, wanted.targets(pixellm.codebook), atol=1e-4)


def test_times_are_shared_out(pixellm: Any) -> None:
    """Two answers of one pass have the same time, and all together no more than passed."""
    import time

    frame = pixellm.encode(PICTURES[0])
    start = time.perf_counter()
    answers = pixellm.segment_batch(frame, ["What?", "What?", "Where?"], TOKENS)
    passed_ms = 1e3 * (time.perf_counter() - start)
    assert answers[0].timing["language"] == pytest.approx(answers[1].timing["language"])
    assert 0 < sum(sum(answer.timing.values()) for answer in answers) <= passed_ms


def test_what_is_bad_is_refused_before_anything_runs(pixellm: Any) -> None:
    seg = counted(pixellm, "seg_hidden")
    frame, good = pixellm.encode(PICTURES[0]), PICTURES[1]
    for images, prompts, sentence in [
        (good, ["What?", " "], r"^Prompt 2 of 2: The prompt is empty"),
        ([good, good], " ", r"^The prompt is empty"),
        (good, [Refer("x")], r"^a pixellm bundle cannot answer"),
        ([good, b"no picture"], "What?", r"^Image 2 of 2: .*picture"),
        ([frame, good], ["What?"] * 3, r"^There are 2 images and 3 prompts"),
    ]:
        with pytest.raises(InputError, match=sentence):
            seg.segment_batch(images, prompts)
    with pytest.raises(InputError, match="1 or more"):
        seg.segment_batch(good, ["What?", "Where?"], 0)
    assert not seg._encoder.sizes
    assert seg.segment_batch(good, []) == [] == seg.segment_batch([], "What?")


# ---- PSALM


QUERIES = [
    Refer("the red mug"),
    Classes(["sky", "a tree"], "semantic"),
    Regions(points=[(20, 20)], boxes=[(3, 4, 30, 35)]),
    "the mug",
    Classes(["a"], "instance"),
    Regions(points=[(7, 9)]),
    Refer("the red mug"),
]


@pytest.fixture(params=["in_place", "concat"])
def adding(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toy.Toy:
    made = toy.Toy(tmp_path, request.param)
    one, decode = made.encoder.function, made.pixel_decoder.function

    def encode(inputs: Any, into: Any) -> dict[str, Any]:
        rows = [one({"pixels": picture[None]}, into) for picture in inputs["pixels"]]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def several(inputs: Any, into: Any) -> dict[str, Any]:
        return {name: np.repeat(v, len(inputs["queries"]), 0) for name, v in decode(inputs, into).items()}

    made.encoder.function, made.pixel_decoder.function = encode, several
    return made


def test_prompts_of_a_kind_are_read_together(adding: toy.Toy) -> None:
    """Queries and conditions of each are those of the prompt alone; one language pass a kind, one drawing."""
    psalm = adding.load()
    wanted = []
    for query in QUERIES:
        psalm.segment(psalm.encode(PICTURES[0]), query)
        wanted.append(adding.pixel_decoder.calls[-1])
    for calls in (adding.language.calls, adding.pixel_decoder.calls, adding.encoder.calls):
        calls.clear()
    results = psalm.segment_batch(PICTURES[0], QUERIES)
    assert len(adding.encoder.calls) == len(adding.pixel_decoder.calls) == 1
    assert len(adding.language.calls) == 3
    drawn = adding.pixel_decoder.calls[0]
    for i, alone in enumerate(wanted):
        count = alone["conditions"].shape[1]
        # The toy's sums have thousands of terms, in another order.
        for name, got in (("queries", drawn["queries"]), ("conditions", drawn["conditions"][:, :count])):
            np.testing.assert_allclose(got[i], alone[name][0], rtol=2e-5, atol=0.05)
        assert not drawn["conditions"][i, count:].any()
        assert drawn["condition_kind"][i] == alone["condition_kind"][0]
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Answer", "Semantic", "Answer", "Answer", "Instances", "Answer", "Answer"]


def test_pictures_are_read_apart(adding: toy.Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    psalm = adding.load()
    images = [PICTURES[0], PICTURES[1], PICTURES[0]]
    results = psalm.segment_batch(images, ["the mug", "the mug", "the cup"])
    assert [len(call["pixels"]) for call in adding.encoder.calls] == [2]
    assert [len(call["queries"]) for call in adding.pixel_decoder.calls] == [2, 1]
    assert [result.masks[0].label for result in results] == ["the mug", "the mug", "the cup"]
    frame = psalm.encode(PICTURES[2])
    adding.language.calls.clear()
    monkeypatch.setattr(psalm_batch, "PROMPTS_MAX", 2)
    psalm.segment_batch([frame], ["a", "b", "c"])
    before = len(psalm.prompt.head) + toy.TOKENS
    assert len(adding.language.calls) == 1
    assert [len(call["queries"]) for call in adding.pixel_decoder.calls[2:]] == [2, 1]
    adding.language.calls.clear()
    psalm.segment_batch([frame], ["a", "b", "c"])  # head and picture are there
    assert int(adding.language.calls[0]["position_ids"][0].min()) == before
    monkeypatch.setattr(
        Psalm, "_rows_max", property(lambda self: before + 2 * len(psalm.prompt.sentence(["a"])))
    )
    adding.language.calls.clear()
    psalm.segment_batch([frame], ["a", "b", "c"])
    assert len(adding.language.calls) == 2


def test_psalm_refuses_before_anything_runs(adding: toy.Toy) -> None:
    psalm = adding.load()
    outside = Regions(points=[(500, 5)])
    for images, prompts, sentence in [
        (PICTURES[0], ["the mug", outside], "^Prompt 2 of 2: "),
        (PICTURES[0], ["the mug", ["sky"]], "^Prompt 2 of 2: a psalm bundle cannot answer a list"),
        ([PICTURES[0], "nowhere.png"], "the mug", "^Image 2 of 2: "),
    ]:
        with pytest.raises(InputError, match=sentence):
            psalm.segment_batch(images, prompts)
    assert not adding.encoder.calls
