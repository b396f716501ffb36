"""A question asked about the newest picture of a camera, again and again.

    with Pipeline(segmenter, "Segment the mug.", deadline_ms=300) as pipeline:
        ...                              # another thread: pipeline.put(image, tag=stamp) for each picture
        for tag, answer in pipeline:     # `answer` may be an exception; see `Delivery` for what else there is
            ...

One picture waits; a newer one takes its place. Two threads work: the first encodes a picture, the second answers about
the one before. At most one encoded picture waits for its question, and one result for the consumer. No question is
begun before the last result was taken: a slow consumer holds the pipeline up, and pictures are dropped at its entrance.
Results come in the order of `put`.

Nothing is lost silently. When all is over

    accepted = answered + late + failed + dropped + abandoned

dropped: a newer picture came before this one was begun. late: given up at the deadline. failed: an exception of the
picture or of the question. All of answered, late and failed are delivered, once. abandoned: the pipeline ended first.

What the two threads share: a session of ONNX Runtime serves any number of threads; a TensorRT engine serves one at a
time, and the encoder is no engine that the second thread runs (see engine_trt.py). So the segmenter may be used
elsewhere at the same time, and only be slower for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from pixelrt.delivery import Delivery, Late
from pixelrt.errors import InputError
from pixelrt.queries import Query
from pixelrt.segmenter import Frame, Result, Segmenter
from pixelrt.tracking import Tracking

Task = str | Query | Tracking


class _Abandoned(Exception):
    """The pipeline was closed while this picture was at work."""


@dataclass(eq=False)
class _Job:
    """A picture on its way."""

    image: Any
    delivery: Delivery
    task: Task = ""


class Pipeline:
    """See above. `put`, `prompt`, `close` and the counters may be used from any thread; one thread iterates."""

    def __init__(
        self,
        segmenter: Segmenter,
        prompt: Task,
        deadline_ms: float | None = None,
        max_new_tokens: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """deadline_ms: from `put` to a ready answer. What is late becomes a delivery with the error `Late`. It is
        checked before encoding, before the question, after each piece of an answer that streams, and at the end: an
        answer that is delivered was ready in time. The question of a `Tracking` is never cut off, for later pictures
        need its answer. clock: in seconds. Raises InputError, as `segmenter.check` does.
        """
        if deadline_ms is not None and not (isinstance(deadline_ms, int | float) and deadline_ms > 0):
            raise InputError(f"deadline_ms is {deadline_ms!r}. Give milliseconds, above 0, or None.")
        self.segmenter, self.deadline_ms = segmenter, deadline_ms
        self.max_new_tokens, self._clock = max_new_tokens, clock
        self.accepted = self.answered = self.late = self.failed = self.dropped = self.abandoned = 0
        self._task = self._checked(prompt)
        self._changed = threading.Condition()  # guards the task and all below
        self._waiting: _Job | None = None  # the newest picture, not begun
        self._encoding: _Job | None = None
        self._encoded: _Job | None = None
        self._answering: _Job | None = None
        self._ready: Delivery | None = None
        self._closed = self._stopped = False  # no more pictures; no more work
        self._fault: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"pixelrt{work.__name__}", daemon=True)
            for work in (self._encode_next, self._answer_next)
        ]
        for thread in self._threads:
            thread.start()

    # ---- the caller's side --------------------------------------------------------------------------------

    @property
    def prompt(self) -> Task:
        """The question. A new one holds from the next picture begun; one that is refused leaves the old one."""
        return self._task

    @prompt.setter
    def prompt(self, prompt: Task) -> None:
        checked = self._checked(prompt)
        with self._changed:
            self._task = checked

    def put(self, image: Any, tag: Any = None, wait: bool = False) -> bool:
        """Hand over a picture, as `encode` takes it; an array is copied. False where the pipeline is closed.

        tag: comes back with the result; a time stamp, say. wait: until no picture is waiting, so that none is
        dropped: for files, not for cameras.
        """
        image = image.copy() if isinstance(image, np.ndarray) else image  # a camera may fill it again
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting is None or self._closed)
            if self._closed:
                return False
            self.dropped += self._waiting is not None
            self.accepted += 1
            self._waiting = _Job(image, Delivery(tag, self._clock()))
            self._changed.notify_all()
        return True

    def __iter__(self) -> Pipeline:
        return self

    def __next__(self) -> Delivery:
        """The next result. The end: closed and, where that was wanted, drained. Raises once what stopped a thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._stopped or self._drained)
            self._raise_fault()
            delivery, self._ready = self._ready, None
            if delivery is None:
                raise StopIteration
            self.answered += delivery.error is None
            self.late += isinstance(delivery.error, Late)
            self.failed += delivery.error is not None and not isinstance(delivery.error, Late)
            self._changed.notify_all()
            return delivery

    def close(self, drain: bool = False) -> None:
        """No more pictures. drain: those that were put are still answered, and iterated over; returns at once.

        Without it they are abandoned; returns when the answer, or the piece of it, that is at work is over.
        """
        with self._changed:
            self._closed = True
            if not drain:
                self._stop()
            self._changed.notify_all()
        if not drain:
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self._raise_fault()

    def _checked(self, prompt: Task) -> Task:
        if not isinstance(prompt, Tracking):
            self.segmenter.check(prompt, max_new_tokens=self.max_new_tokens)
        elif prompt.segmenter is not self.segmenter:
            raise InputError(
                "This Tracking was made with another segmenter. Make one with the pipeline's own."
            )
        return prompt

    # ---- the two threads ----------------------------------------------------------------------------------

    def _run(self, work: Callable[[], bool]) -> None:
        try:
            while work():
                pass
        except BaseException as fault:  # not a picture's, which `_tried` keeps: SystemExit, or our own
            with self._changed:
                self._fault, self._closed = fault, True
                self._stop()
                self._changed.notify_all()

    def _encode_next(self) -> bool:
        with self._changed:
            # Not while an encoded picture waits: this one would be old when its turn comes.
            self._changed.wait_for(
                lambda: (self._waiting and not self._encoded) or self._stopped or self._drained
            )
            if self._waiting is None:
                return False
            job = self._encoding = self._waiting
            self._waiting, job.task = None, self._task
            job.delivery.begun_s = self._clock()
            job.delivery.prompt = job.task.prompt if isinstance(job.task, Tracking) else job.task
            self._changed.notify_all()
        self._tried(job, "before it was encoded", self._encode)
        with self._changed:
            self._encoding, self._encoded = None, None if self._stopped else job
            self._changed.notify_all()
        return True

    def _answer_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (self._encoded and not self._ready) or self._stopped or self._drained
            )
            if self._encoded is None:
                return False
            job = self._answering = self._encoded
            self._encoded = None
            self._changed.notify_all()
        if job.delivery.error is None:
            self._tried(job, "before it was asked about", self._answer)
        job.delivery.ready_s = self._clock()
        with self._changed:
            self._answering, self._ready = None, None if self._stopped else job.delivery
            self._changed.notify_all()
        return True

    def _tried(self, job: _Job, when: str, work: Callable[[_Job], None]) -> None:
        try:
            self._check(job.delivery, when)
            work(job)
        except Exception as error:
            job.delivery.error = error

    def _encode(self, job: _Job) -> None:
        job.delivery.frame = self.segmenter.encode(job.image)
        job.image = None

    def _answer(self, job: _Job) -> None:
        delivery, task = job.delivery, job.task
        assert delivery.frame is not None
        if isinstance(task, Tracking):
            answer = task.step(delivery.frame)
            delivery.asked, delivery.prompt = task.asked, task.prompt
        else:
            answer = self._asked(delivery.frame, task, delivery)
        self._check(delivery, "with its answer")
        delivery.answer = answer

    def _asked(self, frame: Frame, prompt: str | Query, delivery: Delivery) -> Result:
        """In one go where nothing is gained by pieces: they may cost a run of the pixel decoder for each mask."""
        stream = getattr(self.segmenter, "stream", None)
        if stream is None or self.deadline_ms is None:
            return self.segmenter.segment(frame, prompt, max_new_tokens=self.max_new_tokens)
        last: Any = None
        with closing(stream(frame, prompt, max_new_tokens=self.max_new_tokens)) as pieces:
            for piece in pieces:
                self._check(delivery, "in the middle of its answer")
                last = piece
        result: Result = last  # after all its pieces, the answer
        return result

    def _check(self, delivery: Delivery, when: str) -> None:
        if self._stopped:
            raise _Abandoned
        age_ms = 1e3 * (self._clock() - delivery.put_s)
        if self.deadline_ms is not None and age_ms > self.deadline_ms:
            raise Late(f"Given up {when}, after {age_ms:.0f} ms; the deadline is {self.deadline_ms:g} ms.")

    # ---- inside of the lock -------------------------------------------------------------------------------

    @property
    def _places(self) -> tuple[_Job | Delivery | None, ...]:
        return self._waiting, self._encoding, self._encoded, self._answering, self._ready

    @property
    def _drained(self) -> bool:
        return self._closed and not any(self._places)

    def _stop(self) -> None:
        """Abandon all pictures that are in here."""
        self.abandoned += sum(place is not None for place in self._places)
        self._waiting = self._encoding = self._encoded = self._answering = self._ready = None
        self._stopped = True

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
