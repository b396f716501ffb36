"""When a question is asked again, and what is said between; over segmenters whose masks the test chooses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.errors import InputError
from pixelrt.masks import Answer, Mask
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.segmenter import Frame
from pixelrt.tracking import Tracking

SIZE = (8, 40)
BLANK = np.zeros((0, 0), np.float32)


def mask(start: int, score: float = 0.8, label: str = "", width: int = 10) -> Mask:
    """A bar of `width` columns from `start`."""
    bits = np.zeros(SIZE, np.bool_)
    bits[:, start : start + width] = True
    box = (start, 0, start + width, SIZE[0]) if width else None
    return Mask(bits, score, label, (0, 5) if label else None, box, BLANK)


class Film:
    """Frame t shows `masks[t]`; asked about or drawn alike. Notes what it was asked to do."""

    backend = "none"

    def __init__(self, *masks: list[Mask]) -> None:
        self.bundle: Any = SimpleNamespace(path="b", manifest={"family": "film"}, sha256="ab")
        self.masks, self.done = masks, ""
        self.errors: dict[int, Exception] = {}

    def check(self, prompt: Any, image: Any = None, max_new_tokens: int = 512) -> list[int]:
        if not prompt:
            raise InputError("The prompt is empty.")
        return []

    def encode(self, image: int) -> Frame:
        blank = np.zeros((*SIZE, 3), np.uint8)
        return Frame(blank, SIZE, np.zeros((0, 1)), np.zeros(0, np.bool_), {"time": image}, "ab")  # type: ignore[dict-item]

    def segment(self, frame: Frame, prompt: str, max_new_tokens: int = 512) -> Answer:
        self.done += "A"
        if error := self.errors.get(frame.features["time"]):  # type: ignore[call-overload]
            raise error
        found = [replace(m, label=prompt, span=(i, i + 5)) for i, m in enumerate(self._shown(frame))]
        targets = np.full((len(found), 6, 4), len(self.done), np.float32) if found else None
        return Answer(f"{prompt}!", [1, 2], found, {"language": 1.0}, True, targets)

    def draw(self, frame: Frame, targets: np.ndarray, timing: dict[str, float]) -> list[Mask]:
        self.done += "d"
        timing["pixel_decoder"] = 1.0
        self.targets = targets
        return self._shown(frame)[: len(targets)]

    def _shown(self, frame: Frame) -> list[Mask]:
        return self.masks[frame.features["time"]]  # type: ignore[index, call-overload]


def steps(film: Film, **options: Any) -> str:
    """A: asked, d: drawn, frame by frame."""
    tracking = Tracking(film, "mug", **options)  # type: ignore[arg-type]
    asked = ""
    for time in range(len(film.masks)):
        tracking.step(time)
        asked += "A" if tracking.asked else "-"
    assert asked.count("A") == tracking.questions
    return asked


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, "AAAAAAA"), (2, "A-A-A-A"), (3, "A--A--A"), (7, "A------"), (30, "A------")]
)
def test_the_question_is_asked_again_every_so_many_frames(every: int, wanted: str) -> None:
    film = Film(*[[mask(0)]] * 7)
    assert steps(film, every=every) == wanted
    assert film.done == wanted.replace("-", "d")


def test_between_questions_only_masks_are_new() -> None:
    film = Film([mask(0, 0.9), mask(20)], [mask(1, 0.8), mask(21)], [mask(2, 0.7), mask(22)])
    tracking = Tracking(film, "mug")  # type: ignore[arg-type]
    first = tracking.step(0)
    for time in (1, 2):
        answer = tracking.step(time)
        assert isinstance(answer, Answer) and isinstance(first, Answer)
        assert (answer.text, answer.token_ids) == (first.text, first.token_ids) == ("mug!", [1, 2])
        assert answer.timing == {"pixel_decoder": 1.0}
        assert [(m.label, m.span) for m in answer.masks] == [("mug", (0, 5)), ("mug", (1, 6))]
        assert [m.box and m.box[0] for m in answer.masks] == [time, 20 + time]
        assert film.targets is first.targets
    assert [m.box and m.box[0] for m in first.masks] == [0, 20]  # as it was


@pytest.mark.parametrize(("shift", "wanted"), [(3, "A----"), (4, "AAAAA")])
def test_asked_where_a_mask_moved(shift: int, wanted: str) -> None:
    """IoU of bars 10 wide, 3 apart: 7 / 13; 4 apart: 6 / 14."""
    assert steps(Film(*[[mask(20), mask(shift * t)] for t in range(5)])) == wanted


@pytest.mark.parametrize("drift", [0.0, 0.3, 0.429, 1.0])
def test_how_much_is_drift(drift: float) -> None:
    film = Film(*[[mask(4 * t)] for t in range(3)])
    assert steps(film, drift=drift) == ("AAA" if drift > 6 / 14 else "A--")


def test_asked_where_a_score_fell() -> None:
    """Against the first frame after the question: a score of the question itself may mean something else."""
    scores = [0.1, 0.8, 0.6, 0.41, 0.39, 0.8, 0.39]
    assert steps(Film(*[[mask(0, score)] for score in scores])) == "A---A-A"


def test_asked_where_something_vanished_or_appeared_but_once() -> None:
    here, gone = [mask(0)], [mask(0, width=0, score=0.8)]
    assert steps(Film(here, here, gone, gone, gone, here, here)) == "A-A--A-"
    assert steps(Film(here, here, gone, gone, here), drift=0) == "A----"


def test_asked_where_pictures_have_another_size() -> None:
    turned = replace(mask(0), mask=np.ones(SIZE[::-1], np.bool_))
    for drift in (0.0, 0.5):
        assert steps(Film(*[[m] for m in (mask(0), mask(0), turned, turned)]), drift=drift) == "A-A-"


def test_an_answer_without_masks_has_nothing_to_follow() -> None:
    film = Film([], [mask(0)], [mask(0)], [mask(0)], [mask(0)])
    assert steps(film, every=3) == "A--A-"
    assert film.done == "AAd"  # nothing was drawn for nothing


def test_asked_when_told_to() -> None:
    film = Film(*[[mask(0)]] * 6)
    tracking = Tracking(film, "mug")  # type: ignore[arg-type]
    said = []
    for time in range(6):
        if time == 2:
            tracking.ask_again()
        if time == 4:
            tracking.ask_again("cup")
            tracking.ask_again()  # does not take the new prompt back
            with pytest.raises(InputError, match="empty"):
                tracking.ask_again("")
            assert tracking.prompt == "mug"  # until the step
        answer = tracking.step(time)
        said.append((answer.text, tracking.asked, tracking.prompt))
    assert said == [
        ("mug!", True, "mug"),
        ("mug!", False, "mug"),
        ("mug!", True, "mug"),
        ("mug!", False, "mug"),
        ("cup!", True, "cup"),
        ("cup!", False, "cup"),
    ]


def test_after_an_error_the_next_step_asks() -> None:
    film = Film(*[[mask(0)]] * 6)
    film.errors = {3: RuntimeError("no memory")}
    tracking = Tracking(film, "mug", every=3)  # type: ignore[arg-type]
    for time in range(6):
        if time == 3:
            with pytest.raises(RuntimeError):
                tracking.step(time)
        else:
            tracking.step(time)
    assert film.done == "AddAAd"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 2.5}, "every is 2.5"),
        ({"drift": 1.1}, "drift is 1.1"),
        ({"drift": math.nan}, "drift is nan"),
        ({"drift": "much"}, "drift is 'much'"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Tracking(Film(), "mug", **options)  # type: ignore[arg-type]


def test_refused_by_the_family() -> None:
    with pytest.raises(InputError, match="empty"):
        Tracking(Film(), "")  # type: ignore[arg-type]
    only: Any = SimpleNamespace(bundle=Film().bundle)
    with pytest.raises(InputError, match="'film', which cannot follow objects"):
        Tracking(only, "mug")


# ---- PSALM -----------------------------------------------------------------------------------------------------

PICTURES = [np.random.default_rng(i).integers(0, 256, (75, 100, 3), dtype=np.uint8) for i in range(4)]


@pytest.fixture
def model(tmp_path: Path) -> toy.Toy:
    return toy.tiled(tmp_path)


@pytest.fixture
def psalm(model: toy.Toy) -> Any:
    return model.load()


def test_psalm_follows_the_objects_of_its_answer(psalm: Any) -> None:
    """As `track` does that is given the answer's masks at once."""
    tracking = Tracking(psalm, Classes(["sky", "tree"], "instance", min_score=0.5), drift=0)
    first = tracking.step(PICTURES[0])
    assert {m.label for m in first.masks} == {"sky", "tree"}
    wanted = list(psalm.track(PICTURES, Regions(masks=[m.mask for m in first.masks])))[1:]
    for picture, result in zip(PICTURES[1:], wanted, strict=True):
        got = tracking.step(picture)
        assert not tracking.asked
        assert [m.label for m in got.masks] == [m.label for m in first.masks]
        for a, b in zip(got.masks, result.masks, strict=True):
            assert np.array_equal(a.mask, b.mask) and a.score == b.score
        assert np.array_equal(got.label_map, result.label_map)  # type: ignore[attr-defined]


def test_psalm_is_asked_on_schedule_and_answers_nothing_with_nothing(psalm: Any) -> None:
    tracking, asked = Tracking(psalm, "the red mug", every=3), ""
    for picture in [*PICTURES, *PICTURES]:
        assert tracking.step(picture).masks
        asked += "A" if tracking.asked else "-"
    assert asked == "A--A--A-"
    tracking = Tracking(psalm, Refer("the red mug", none_below=1.0), every=3)
    found = [tracking.step(picture) for picture in PICTURES]
    assert [len(f.masks) for f in found] == [0] * 4 and tracking.questions == 2
    assert found[1].label_map.shape == (75, 100)  # type: ignore[attr-defined]


def test_places_hold_for_one_frame(psalm: Any, model: toy.Toy) -> None:
    """They are followed on, whatever `every` and `drift` say."""
    tracking = Tracking(psalm, Regions(points=[(40, 25)]), every=1, drift=1)
    seen = []
    for picture in PICTURES:
        seen.append(tracking.step(picture).masks[0].mask)
        model.masks[3] = np.roll(model.masks[3], 5, axis=0)  # away from where it was
    assert tracking.questions == 1 and not (seen[2] & seen[3]).any()
    tracking.ask_again(Regions(points=[(55, 5), (40, 25)]))
    assert len(tracking.step(PICTURES[0]).masks) == 2 and tracking.asked
    with pytest.raises(InputError, match="another bundle"):
        tracking.step(Film().encode(0))


def test_what_was_not_found_is_not_followed(psalm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Regions(points=[(55, 5), (40, 25)])
    answer = psalm.segment(PICTURES[0], query)
    empty = replace(answer.masks[1], mask=np.zeros((75, 100), np.bool_), box=None)
    monkeypatch.setattr(psalm, "segment", lambda *a, **k: replace(answer, masks=[answer.masks[0], empty]))
    tracking = Tracking(psalm, query)
    first, second = (tracking.step(picture).masks for picture in PICTURES[:2])
    assert len(first) == 2 and [m.label for m in second] == [first[0].label]


def test_places_that_were_lost_are_not_looked_for_elsewhere(psalm: Any, monkeypatch: Any) -> None:
    tracking = Tracking(psalm, Regions(points=[(40, 25)]))
    tracking.step(PICTURES[0])
    with monkeypatch.context() as patch:
        patch.setattr(psalm, "_track", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tracking.step(PICTURES[1])
    with pytest.raises(InputError, match="places of an earlier frame"):
        tracking.step(PICTURES[2])
    tracking.ask_again()
    assert tracking.step(PICTURES[2]).masks
