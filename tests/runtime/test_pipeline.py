"""The pipeline over a segmenter whose every step waits until the test lets it go on: no test hangs on time."""

from __future__ import annotations

import queue
import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pixelrt.delivery import Delivery, Late
from pixelrt.errors import InputError
from pixelrt.pipeline import Pipeline
from pixelrt.tracking import Tracking

STUCK_S = 30  # only a failing test waits so long


class Scripted:
    """Pictures are numbers. A step of a picture is announced, then waits for `go`; then it may raise."""

    bundle = SimpleNamespace(path="b", manifest={"family": "scripted"}, sha256="ab")
    backend = "none"

    def __init__(self) -> None:
        self.steps: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.errors: dict[tuple[str, Any], BaseException] = {}
        self._gates: dict[tuple[str, Any], threading.Event] = defaultdict(threading.Event)
        self._open = False

    def go(self, *steps: tuple[str, Any]) -> None:
        for step in steps:
            self._gates[step].set()

    def go_on(self) -> None:
        """From now on nothing waits."""
        self._open = True
        for gate in list(self._gates.values()):
            gate.set()

    def reached(self, *steps: tuple[str, Any]) -> None:
        """Wait until these steps were begun, in any order, and no others."""
        found = {self.steps.get(timeout=STUCK_S) for _ in steps}
        assert found == set(steps)

    def check(self, prompt: Any, image: Any = None, max_new_tokens: int = 512) -> list[int]:
        if not prompt:
            raise InputError("The prompt is empty.")
        return []

    def encode(self, image: Any) -> Any:
        self._step("encode", image)
        return SimpleNamespace(image=image)

    def segment(self, frame: Any, prompt: Any, max_new_tokens: int = 512) -> Any:
        self._step("ask", frame.image)
        return f"{prompt} {frame.image}"

    def _step(self, name: str, image: Any) -> None:
        step = name, image
        self.steps.put(step)
        if not self._open:
            assert self._gates[step].wait(STUCK_S), f"nobody let {step} go on"
        if step in self.errors:
            raise self.errors[step]


class Streaming(Scripted):
    """Answers come in three pieces."""

    def stream(self, frame: Any, prompt: Any, max_new_tokens: int = 512) -> Iterator[Any]:
        try:
            for piece in ("one", "two", f"{prompt} {frame.image}"):
                self._step(piece, frame.image)
                yield piece
        finally:
            self.steps.put(("closed", frame.image))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def piped(scripted: Scripted, prompt: Any = "what", **options: Any) -> Iterator[Pipeline]:
    try:
        with Pipeline(scripted, prompt, **options) as pipeline:
            yield pipeline
            scripted.go_on()  # leaving waits for what is at work
    finally:
        scripted.go_on()
    assert not any(thread.is_alive() for thread in pipeline._threads)
    accounted = pipeline.answered + pipeline.late + pipeline.failed + pipeline.dropped + pipeline.abandoned
    assert pipeline.accepted == accounted


def taken(pipeline: Pipeline) -> list[tuple[Any, Any]]:
    """Everything that is still to come."""
    pipeline.close(drain=True)
    return [tuple(delivery) for delivery in pipeline]


def test_the_newest_picture_wins() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        assert pipeline.put(0, tag="a")
        fake.reached(("encode", 0))
        for number, tag in enumerate("bcd", start=1):
            pipeline.put(number, tag)
        assert (pipeline.accepted, pipeline.dropped) == (4, 2)
        fake.go_on()
        assert taken(pipeline) == [("a", "what 0"), ("d", "what 3")]
        assert (pipeline.answered, pipeline.dropped) == (2, 2)


def test_the_next_picture_is_encoded_under_the_question_about_this_one() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.go(("encode", 0))
        fake.reached(("encode", 0), ("ask", 0))
        pipeline.put(1)
        fake.reached(("encode", 1))  # 0 is still being asked about


def test_one_picture_is_ahead_and_no_more() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.go(("encode", 0), ("encode", 1))
        fake.reached(("encode", 0), ("ask", 0))
        pipeline.put(1)
        fake.reached(("encode", 1))
        pipeline.put(2)
        pipeline.put(3)  # takes the place of 2, which was not begun
        assert pipeline.dropped == 1
        fake.go(("ask", 0))
        assert next(pipeline).answer == "what 0"
        fake.reached(("ask", 1), ("encode", 3))


def test_a_consumer_that_is_slow_holds_it_up() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        fake.go_on()
        pipeline.put(0)
        fake.reached(("encode", 0), ("ask", 0))
        pipeline.put(1)
        fake.reached(("encode", 1))
        pipeline.put(2)
        pipeline.put(3)
        assert fake.steps.empty() and pipeline.dropped == 1  # 1 is encoded, nobody took the answer about 0
        assert tuple(next(pipeline)) == (None, "what 0")
        fake.reached(("ask", 1), ("encode", 3))


def test_no_picture_of_a_file_is_dropped() -> None:
    fake = Scripted()
    fake.go_on()
    with piped(fake) as pipeline:

        def feed() -> None:
            for number in range(50):
                pipeline.put(number, number, wait=True)
            pipeline.close(drain=True)

        thread = threading.Thread(target=feed)
        thread.start()
        assert [tuple(found) for found in pipeline] == [(n, f"what {n}") for n in range(50)]
        thread.join()
        assert pipeline.dropped == 0 and not pipeline.put(50)


def test_errors_come_once_each_in_order_and_it_goes_on() -> None:
    fake = Scripted()
    fake.go_on()
    fake.errors = {("encode", 1): InputError("no picture"), ("ask", 2): RuntimeError("no memory")}
    with piped(fake) as pipeline:
        found = []
        for number in range(4):
            pipeline.put(number)
            found.append(next(pipeline))
        assert [tuple(f)[1] for f in found] == [
            "what 0",
            *fake.errors.values(),
            "what 3",
        ]
        assert [f.frame is None for f in found] == [False, True, False, False]
        assert (pipeline.answered, pipeline.failed) == (2, 2)


@pytest.mark.parametrize("step", ["encode", "ask"])
def test_what_is_no_fault_of_a_picture_ends_it(step: str) -> None:
    fake = Scripted()
    fake.go_on()
    fake.errors = {(step, 0): SystemExit("the machine goes down")}
    with piped(fake) as pipeline:
        pipeline.put(0)
        with pytest.raises(SystemExit, match="goes down"):
            next(pipeline)
        assert list(pipeline) == [] and not pipeline.put(1)
        assert (pipeline.accepted, pipeline.abandoned) == (1, 1)


def test_what_ended_it_is_not_lost_where_nobody_iterates() -> None:
    fake = Scripted()
    fake.errors = {("ask", 0): SystemExit("the machine goes down")}
    with pytest.raises(SystemExit), piped(fake) as pipeline:
        pipeline.put(0)
        fake.go(("encode", 0), ("ask", 0))
        for thread in pipeline._threads:
            thread.join(STUCK_S)


def test_a_new_prompt_holds_from_the_next_picture_begun() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.reached(("encode", 0))
        pipeline.put(1)
        pipeline.prompt = "where"
        with pytest.raises(InputError, match="empty"):
            pipeline.prompt = ""
        assert pipeline.prompt == "where"
        fake.go_on()
        pipeline.close(drain=True)
        assert [(d.prompt, d.answer) for d in pipeline] == [("what", "what 0"), ("where", "where 1")]


def test_an_array_may_be_filled_again() -> None:
    fake = Scripted()
    seen: list[Any] = []
    fake.encode = lambda image: seen.append(int(image[0, 0])) or SimpleNamespace(image=0)  # type: ignore[method-assign]
    fake.go_on()
    with piped(fake) as pipeline:
        buffer = np.zeros((2, 2), np.uint8)
        with pipeline._changed:  # nothing can be begun meanwhile
            pipeline.put(buffer)
            buffer[:] = 9
        next(pipeline)
    assert seen == [0]


# ---- the deadline ----------------------------------------------------------------------------------------------


def test_late_before_it_is_encoded() -> None:
    fake, clock = Scripted(), Clock()
    with piped(fake, deadline_ms=100, clock=clock) as pipeline:
        pipeline.put(0)
        fake.reached(("encode", 0))
        clock.now = 0.05
        pipeline.put(1)
        clock.now = 0.09
        pipeline.put(2)  # 1 is dropped
        clock.now = 0.2
        fake.go_on()
        found = [next(pipeline), next(pipeline)]
        assert [type(f.error) for f in found] == [Late, Late]
        assert str(found[0].error) == (
            "Given up before it was asked about, after 200 ms; the deadline is 100 ms."
        )
        assert str(found[1].error).startswith("Given up before it was encoded, after 110 ms")
        assert fake.steps.empty()  # neither was asked about, 2 was not even encoded
        assert (pipeline.late, pipeline.dropped, pipeline.answered) == (2, 1, 0)
        assert found[0].latency_ms == pytest.approx(200)


def test_a_late_answer_is_not_delivered_and_one_in_time_is() -> None:
    fake, clock = Scripted(), Clock()
    with piped(fake, deadline_ms=100, clock=clock) as pipeline:
        for number, spent_s in enumerate([0.1, 0.11]):
            fake.go(("encode", number))
            pipeline.put(number)
            fake.reached(("encode", number), ("ask", number))
            clock.now += spent_s
            fake.go(("ask", number))
            delivery = next(pipeline)
            assert (delivery.error is None) == (number == 0)
        assert delivery.answer is None and "with its answer, after 110 ms" in str(delivery.error)


def test_an_answer_that_streams_is_cut_off() -> None:
    fake, clock = Streaming(), Clock()
    with piped(fake, deadline_ms=100, clock=clock) as pipeline:
        pipeline.put(0)
        fake.go(("encode", 0), ("one", 0))
        fake.reached(("encode", 0), ("one", 0), ("two", 0))
        clock.now = 0.2
        fake.go(("two", 0))
        assert "in the middle of its answer" in str(next(pipeline).error)
        fake.reached(("closed", 0))  # the generator was told
        assert fake.steps.empty()  # the third piece was never made
        fake.go_on()
        pipeline.put(1)
        assert next(pipeline).answer == "what 1"
        pipeline.deadline_ms = None
        pipeline.put(2)
        assert next(pipeline).answer == "what 2" and ("ask", 2) in fake.steps.queue  # in one go


# ---- the end ---------------------------------------------------------------------------------------------------


def test_what_was_put_is_drained() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.reached(("encode", 0))
        pipeline.put(1)
        pipeline.close(drain=True)
        assert not pipeline.put(2)
        fake.go_on()
        assert [tuple(d)[1] for d in pipeline] == ["what 0", "what 1"]
        assert list(pipeline) == [] and pipeline.abandoned == 0


def test_what_is_at_work_is_abandoned() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.go(("encode", 0))
        fake.reached(("encode", 0), ("ask", 0))
        pipeline.put(1)
        fake.reached(("encode", 1))
        pipeline.put(2)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        assert list(pipeline) == []  # at once: the question about 0 is still at work
        assert pipeline.abandoned == 3 and not pipeline.put(3)
        fake.go_on()
        closing.join(STUCK_S)
        assert not closing.is_alive()
        assert fake.steps.empty()


def test_put_that_waits_ends_with_the_pipeline() -> None:
    fake = Scripted()
    with piped(fake) as pipeline:
        pipeline.put(0)
        fake.reached(("encode", 0))
        pipeline.put(1)
        said: queue.Queue[bool] = queue.Queue()
        thread = threading.Thread(target=lambda: said.put(pipeline.put(2, wait=True)))
        thread.start()
        pipeline.close(drain=True)
        assert said.get(timeout=STUCK_S) is False
        thread.join()


def test_nothing_is_lost_whatever_happens() -> None:
    """A camera that runs free, errors here and there, a consumer that takes what comes."""
    rng = random.Random(5)
    fake = Scripted()
    fake.go_on()
    fake.errors = {(rng.choice(["encode", "ask"]), n): ValueError(str(n)) for n in range(0, 3000, 7)}
    with piped(fake, deadline_ms=1e9) as pipeline:

        def feed() -> None:
            for number in range(3000):
                pipeline.put(number, number, wait=rng.random() < 0.2)
            pipeline.close(drain=True)

        thread = threading.Thread(target=feed)
        thread.start()
        found: list[Delivery] = list(pipeline)
        thread.join()
    tags = [delivery.tag for delivery in found]
    assert tags == sorted(set(tags)) and tags[-1] == 2999
    assert len(found) == pipeline.answered + pipeline.failed and pipeline.abandoned == 0
    for delivery in found:
        assert (delivery.error is None) == (delivery.answer == f"what {delivery.tag}")
        assert delivery.put_s <= delivery.begun_s <= delivery.ready_s


@pytest.mark.parametrize("deadline", [0, -1, "soon"])
def test_refused(deadline: Any) -> None:
    with pytest.raises(InputError, match=f"deadline_ms is {deadline!r}"):
        Pipeline(Scripted(), "what", deadline_ms=deadline)
    with pytest.raises(InputError, match="empty"):
        Pipeline(Scripted(), "")


# ---- with tracking ---------------------------------------------------------------------------------------------


def test_tracking_in_place_of_a_prompt() -> None:
    """Its state is the second thread's; the first encodes for it."""
    fake = Scripted()
    fake.go_on()
    asked: list[int] = []

    class Every2(Tracking):
        def __init__(self, segmenter: Any) -> None:
            self.segmenter, self.prompt, self.asked = segmenter, "what", False

        def step(self, image: Any) -> Any:
            asked.append(threading.get_ident())
            self.asked = image.image % 2 == 0
            self.prompt = "what" if image.image < 2 else "where"
            return f"followed {image.image}"

    with piped(fake, Every2(fake)) as pipeline:
        found = []
        for number in range(4):
            pipeline.put(number)
            found.append(next(pipeline))
        assert [d.answer for d in found] == [f"followed {n}" for n in range(4)]
        assert [d.asked for d in found] == [True, False, True, False]
        assert [d.prompt for d in found] == ["what", "what", "where", "where"]
        assert len(set(asked)) == 1
        pipeline.prompt = "who"
        pipeline.put(4)
        delivery = next(pipeline)
        assert (delivery.answer, delivery.prompt, delivery.asked) == ("who 4", "who", True)
        with pytest.raises(InputError, match="another segmenter"):
            pipeline.prompt = Every2(Scripted())
