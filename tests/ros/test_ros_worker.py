"""The node's worker and its health, without ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from coloured import Coloured, message, picture
from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer
from pixelrt.ros.health import ERROR, OK, STALE, WARN, Health, in_words
from pixelrt.ros.parameters import question_of
from pixelrt.ros.worker import Answered, Options, Worker


class Model(Coloured):
    """Waits in `segment` until it is let through, and fails where it is told to."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None

    def segment(self, frame: Any, prompt: Any, max_new_tokens: int = 512, seg_runs: str = "complete") -> Any:
        self.entered.release()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        return super().segment(frame, prompt)


class Rig:
    """A worker, the models it loaded by their paths, and what it published."""

    def __init__(self, **options: Any) -> None:
        self.models: dict[str, Model] = {}
        self.bad: dict[str, Exception] = {}  # path -> raised when it is loaded
        self.published: list[Answered] = []
        self.now = 100.0
        self.health = Health(timeout_s=5.0, stall_s=3.0)
        self.worker = Worker(
            Options(**options), self.health, self.published.append, load=self.load, clock=lambda: self.now
        )

    def load(self, path: str, backend: str) -> Model:
        if path in self.bad:
            raise self.bad[path]
        return self.models.setdefault(path, Model(path))

    def started(self, prompt: str = "the box") -> Model:
        self.worker.load("first")
        self.worker.ask(prompt)
        self.worker.start()
        model = self.models["first"]
        model.entered = threading.Semaphore(0)
        return model

    def settled(self, number: int = 0) -> None:
        """Wait until picture `number` was dealt with."""
        seen = self.counted()
        self.worker.put(message(picture(number), number))
        self.until(lambda: self.counted() > seen)

    def counted(self) -> int:
        health = self.health
        return health.answered + health.failed + health.late

    @staticmethod
    def until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not true():
            assert time.monotonic() < end, "waited 10 s"
            time.sleep(0.002)

    def level(self) -> int:
        self.until(lambda: self.health.busy_since is None)
        return self.health.status(self.now).level


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    for model in made.models.values():
        model.gate.set()
    made.worker.stop()


def test_the_header_is_the_picture_s_own(rig: Rig) -> None:
    rig.started()
    for number in (3, 5, 4):
        rig.settled(number)
    assert [answered.header for answered in rig.published] == [3, 5, 4]
    for answered in rig.published:
        np.testing.assert_array_equal(answered.picture, picture(answered.header))
        want = Coloured().segment(picture(answered.header), "box").masks
        assert [mask.label for mask in answered.masks] == [mask.label for mask in want]
        for got, expected in zip(answered.masks, want, strict=True):
            np.testing.assert_array_equal(got.mask, expected.mask)
    assert rig.level() == OK


def test_the_newest_picture_wins(rig: Rig) -> None:
    model = rig.started()
    model.gate.clear()
    rig.worker.put(message(picture(1), 1))
    assert model.entered.acquire(timeout=10)
    for number in (2, 3, 4):
        rig.worker.put(message(picture(number), number))
    model.gate.set()
    rig.until(lambda: len(rig.published) == 2)
    assert [answered.header for answered in rig.published] == [1, 4]
    assert (rig.health.received, rig.health.skipped) == (4, 2)


def test_a_late_answer_is_an_error_and_is_dropped(rig: Rig) -> None:
    model = rig.started()
    model.gate.clear()
    rig.worker.put(message(picture(1), 1))
    assert model.entered.acquire(timeout=10)
    rig.now += 5.5
    status = rig.health.status(rig.now)  # while it is at work
    assert status.level == ERROR and status.message.startswith("timeout: an answer takes 5.5 s")
    model.gate.set()
    rig.until(lambda: rig.health.late == 1)
    rig.worker.put(message(picture(2), 2))
    rig.until(lambda: len(rig.published) == 1)
    assert rig.published[0].header == 2
    assert rig.level() == OK


def test_after_a_late_answer_the_error_stays_until_the_next(rig: Rig) -> None:
    model = rig.started()
    model.gate.clear()
    rig.worker.put(message(picture(1), 1))
    assert model.entered.acquire(timeout=10)
    rig.now += 5.5
    model.gate.set()
    rig.until(lambda: rig.health.late == 1)
    rig.now -= 5
    assert rig.level() == ERROR and not rig.published


def test_a_stalled_camera_is_an_error(rig: Rig) -> None:
    rig.started()
    rig.settled()
    rig.now += 2.9
    assert rig.level() == OK
    rig.now += 0.2
    assert rig.level() == ERROR
    assert "no image for 3.1 s" in rig.health.status(rig.now).message
    assert len(rig.published) == 1  # nothing is said again about the old picture
    rig.settled()
    assert rig.level() == OK


def test_a_camera_that_never_came(rig: Rig) -> None:
    rig.started()
    rig.now += 3.1
    assert rig.level() == ERROR


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 9"), "out of memory: Failed"),
        (RuntimeError("CUDA error: out of memory"), "out of memory: CUDA"),
        (
            RuntimeError("execution of node 7 failed"),
            "engine error: RuntimeError: execution of node 7 failed",
        ),
        (InputError("the prompt is too long."), "the prompt is too long."),
    ],
)
def test_a_failure_is_an_error_until_the_next_answer(rig: Rig, error: Exception, says: str) -> None:
    model = rig.started()
    rig.settled(1)
    model.error = error
    rig.settled(2)
    assert rig.level() == ERROR
    assert rig.health.status(rig.now).message.startswith(says)
    model.error = None
    rig.settled(3)
    assert rig.level() == OK
    assert [answered.header for answered in rig.published] == [1, 3]


def test_a_picture_that_cannot_be_read(rig: Rig) -> None:
    rig.started()
    bad = message(picture(1))
    bad.encoding = "yuv422"
    rig.worker.put(bad)
    rig.until(lambda: rig.health.failed == 1)
    assert rig.level() == ERROR and "yuv422" in rig.health.status(rig.now).message


def test_a_failing_publisher_does_not_end_the_worker(rig: Rig) -> None:
    rig.started()
    rig.worker._publish = lambda answered: 1 / 0  # type: ignore[assignment]
    rig.settled()
    rig.worker._publish = rig.published.append
    rig.settled(7)
    assert [answered.header for answered in rig.published] == [7]


def test_without_a_question_nothing_is_asked(rig: Rig) -> None:
    rig.worker.load("first")
    rig.worker.start()
    rig.worker.put(message(picture(1), 1))
    assert rig.health.status(rig.now).level == WARN
    assert rig.models["first"].asked == ["Segment the object."]  # the warm-up
    rig.worker.ask("the box")  # the waiting picture is answered
    rig.until(lambda: len(rig.published) == 1)


def test_the_question_changes_between_pictures(rig: Rig) -> None:
    model = rig.started("the box")
    rig.settled(1)
    rig.worker.ask("the ball")
    rig.settled(2)
    assert [sorted(a.names.values()) for a in rig.published] == [
        ["blue box", "red box"],
        ["blue ball", "red ball"],
    ]
    with pytest.raises(InputError):
        rig.worker.ask("  ")
    assert rig.level() == WARN and "is empty" in rig.health.status(rig.now).message
    rig.settled(3)
    assert model.asked[-1] == "the ball"
    rig.worker.ask("the box")
    assert rig.level() == OK


def test_numbers_stay_while_the_question_does(rig: Rig) -> None:
    rig.started()
    for number in (1, 5, 6):  # 5: without blue
        rig.settled(number)
    assert [list(answered.numbers) for answered in rig.published] == [[1, 2], [1], [1, 2]]
    assert rig.published[1].names == {1: "red box", 2: "blue box"}


def test_nothing_is_published_after_stop(rig: Rig) -> None:
    model = rig.started()
    model.gate.clear()
    rig.worker.put(message(picture(1), 1))
    assert model.entered.acquire(timeout=10)
    rig.worker.stop(wait_s=0.01)
    assert rig.health.status(rig.now).level == STALE
    rig.worker.start()
    model.gate.set()
    rig.settled(2)
    assert [answered.header for answered in rig.published] == [2]


# ---- another bundle -----------------------------------------------------------------------------------------


def change(rig: Rig, path: str) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []
    rig.worker.change_bundle(path, lambda serving, error: heard.append((serving, error)))
    return heard


def test_a_bundle_takes_over_between_pictures(rig: Rig) -> None:
    first = rig.started()
    rig.settled(1)
    heard = change(rig, "second")
    rig.until(lambda: rig.worker._candidate is not None)
    assert rig.models["second"].asked == ["the box"] and not heard  # warm, and not yet trusted
    rig.settled(2)
    assert heard == [("second", "")] and rig.worker.bundle == "second"
    assert (len(first.asked), len(rig.models["second"].asked)) == (2, 2)
    assert [answered.header for answered in rig.published] == [1, 2]
    assert rig.health.status(rig.now).values["bundle"] == "second"


def test_the_old_bundle_serves_while_the_new_one_is_loaded(rig: Rig) -> None:
    rig.started()
    rig.models["second"] = slow = Model("second")
    slow.gate.clear()
    heard = change(rig, "second")
    assert slow.entered.acquire(timeout=10)  # in its warm-up
    rig.settled(1)
    assert rig.published[-1].header == 1 and not heard
    with pytest.raises(InputError, match="another bundle is being loaded"):
        change(rig, "third")
    slow.gate.set()
    rig.until(lambda: rig.worker._candidate is not None)
    rig.settled(2)
    assert heard == [("second", "")]


@pytest.mark.parametrize(
    "error", [InputError("second does not exist."), MemoryError(), RuntimeError("bad engine")]
)
def test_a_bundle_that_cannot_be_loaded(rig: Rig, error: Exception) -> None:
    rig.started()
    rig.bad["second"] = error
    heard = change(rig, "second")
    rig.until(lambda: bool(heard))
    assert heard == [("first", in_words(error))]
    rig.settled(1)
    assert rig.level() == WARN and "second: " in rig.health.status(rig.now).message
    assert [answered.header for answered in rig.published] == [1]
    change(rig, "third")
    rig.until(lambda: rig.worker._candidate is not None)
    rig.settled(2)
    assert rig.level() == OK


def test_a_bundle_that_fails_on_its_first_picture_is_rolled_back(rig: Rig) -> None:
    rig.started()
    heard = change(rig, "second")
    rig.until(lambda: rig.worker._candidate is not None)
    rig.models["second"].error = RuntimeError("bad engine")
    rig.settled(1)
    assert heard == [("first", "engine error: RuntimeError: bad engine")]
    assert [answered.header for answered in rig.published] == [1]  # by the old one
    assert rig.models["first"].asked[-1] == "the box" and rig.health.failed == 0
    rig.settled(2)
    assert len(rig.published) == 2 and rig.worker.bundle == "first"


def test_a_question_the_new_bundle_refuses(rig: Rig) -> None:
    rig.started()
    rig.models["second"] = Model("second")
    rig.models["second"].check = lambda *a, **k: (_ for _ in ()).throw(InputError("no such task."))  # type: ignore
    heard = change(rig, "second")
    rig.until(lambda: bool(heard))
    assert heard == [("first", "no such task.")]


# ---- tracking, questions, memory ----------------------------------------------------------------------------


class FollowingDouble:
    """Stands for pixelrt.tracking.Tracking."""

    made: list[tuple[Any, Any, dict[str, Any]]]

    def __init__(self, segmenter: Any, prompt: Any, **options: Any) -> None:
        self.segmenter, self.prompt, self.steps = segmenter, prompt, 0
        type(self).made.append((segmenter, prompt, options))

    def step(self, frame: Any) -> Any:
        self.steps += 1
        return self.segmenter.segment(frame, self.prompt)


def test_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelrt.ros.worker.Tracking", FollowingDouble)
    FollowingDouble.made = []
    rig = Rig(tracking=True, track_every=7, track_drift=0.25)
    rig.started()
    for number in range(3):
        rig.settled(number)
    rig.worker.ask("the ball")
    rig.settled(3)
    rig.worker.stop()
    used = [(prompt, options) for _, prompt, options in FollowingDouble.made]
    wanted = {"every": 7, "drift": 0.25, "max_new_tokens": 512}
    assert used == [("Segment the object.", wanted), ("the box", wanted), ("the ball", wanted)]


def test_questions() -> None:
    assert question_of("", " the mug ") == "the mug"
    assert question_of("", " ") is None and question_of("panoptic", "") is None
    assert question_of("referring", "the mug") == Refer("the mug")
    assert question_of("semantic", "", ["sky", "road"]) == Classes(["sky", "road"], "semantic")
    assert question_of("panoptic", "mug, book,, mug", ["sky"], ["mug"]) == Classes(
        ["mug", "book"], things=["mug"]
    )
    with pytest.raises(InputError, match="the task is 'all'"):
        question_of("all", "mug")


def test_latency_by_stage() -> None:
    health = Health(1, 1)
    for spent in range(1, 41):
        health.took({"encode": float(spent)})
    values = health.status(0).values
    assert values["encode ms, median"] == "20.5" and float(values["encode ms, 95 %"]) == pytest.approx(
        38, abs=0.1
    )
    health.took({"language": 3.0})
    assert "language ms, 95 %" not in health.status(0).values  # of too few to be said
