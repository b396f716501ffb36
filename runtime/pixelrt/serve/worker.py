"""The one thread that runs the model, and the bounded queue before it.

What waits is gathered up to `batch` questions or `wait_ms`, sorted by picture, and each picture is encoded once. As
many pictures as may be kept are then asked about together: see `answers_of`.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.queries import Query
from pixelrt.segmenter import Frame, Result, Segmenter
from pixelrt.serve.frames import Frames
from pixelrt.serve.metrics import Metrics
from pixelrt.serve.settings import Settings
from pixelrt.serve.together import answers_of


@dataclass(frozen=True, eq=False)
class Answered:
    """The last piece of an answer."""

    question: Question
    result: Result
    frame: Frame
    reused: bool  # the picture was encoded already
    queue_ms: float

    @property
    def query(self) -> str | Query:
        return self.question.query

    @property
    def timing_ms(self) -> dict[str, float]:
        encoding = {} if self.reused else self.frame.timing
        return {"queue": self.queue_ms, **encoding, **self.result.timing}

    @property
    def prompt_tokens(self) -> int:
        return self.question.text_tokens + len(self.frame.tokens)


# Words and masks as they come, then the answer; or the error that came in its place.
Piece = str | Mask | Answered | Exception


@dataclass(eq=False)
class Question:
    """give: takes the pieces, in the worker's thread; words and masks only where `stream` is true."""

    picture: bytes  # of the file
    query: str | Query
    give: Callable[[Piece], None]
    text_tokens: int = 0  # of the prompt without the picture
    max_new_tokens: int = 512
    seg_runs: str = "complete"
    stream: bool = False
    asked: float = field(default_factory=time.perf_counter)
    abandoned: bool = False  # nobody waits for the rest

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256(self.picture).hexdigest()


@dataclass(eq=False)
class Picture:
    """Questions about one frame. known: somebody else was charged with its encoding. sound: no answer failed."""

    frame: Frame
    questions: Sequence[Question]
    known: bool = False
    sound: bool = True


class QueueFull(Exception):
    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting already. Ask again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class Closed(Exception):
    """The server is shutting down."""


class Worker:
    """Owns the segmenter from `start` until `close`."""

    def __init__(self, segmenter: Segmenter, settings: Settings, metrics: Metrics) -> None:
        self.segmenter, self.settings, self.metrics = segmenter, settings, metrics
        self.frames = Frames(settings.frames_bytes, metrics)
        self.succeeded = -math.inf  # time.monotonic() of the last answer, -inf after a failure
        self._waiting: deque[Question] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._answer_s = 1.0  # running mean
        self._thread = threading.Thread(target=self._work, name="pixelrt-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, question: Question, always: bool = False) -> None:
        """Raises QueueFull, Closed. always: take it even where the queue is full (a health check)."""
        with self._changed:
            if self._closed:
                raise Closed("The server is shutting down. Ask another one.")
            waiting = len(self._waiting)
            if waiting >= self.settings.waiting and not always:
                raise QueueFull(waiting, min(60, max(1, math.ceil(waiting * self._answer_s))))
            self._waiting.append(question)
            self.metrics.waiting.set(waiting + 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more; return when all that waits is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while batch := self._gathered():
            self.metrics.batch.observe(len(batch))
            self.metrics.answering.set(len(batch))
            try:
                self._answer_all(batch)
            except Exception as error:  # the thread must outlive whatever happens
                for question in batch:
                    self._failed(question, error)
            self.metrics.answering.set(0)

    def _answer_all(self, batch: Sequence[Question]) -> None:
        begun = time.perf_counter()
        pictures: list[Picture] = []
        for questions in _by_picture(batch):
            picture = self._encoded(questions)
            if picture is None:
                continue
            size = sum(each.frame.nbytes for each in (*pictures, picture))
            if pictures and size > self.settings.frames_bytes:
                self._answer(pictures, begun)
                begun, pictures = time.perf_counter(), []
            pictures.append(picture)
        self._answer(pictures, begun)

    def _gathered(self) -> list[Question]:
        """The next questions, first come first; none when closed and done."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            until = time.monotonic() + self.settings.wait_ms / 1e3
            while len(self._waiting) < self.settings.batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.settings.batch))]
            self.metrics.waiting.set(len(self._waiting))
        return batch

    def _encoded(self, questions: Sequence[Question]) -> Picture | None:
        """The picture of these questions; None where nobody waits for it, or it fails."""
        wanted = [question for question in questions if not question.abandoned]
        self.metrics.abandoned.inc(len(questions) - len(wanted))
        if not wanted:
            return None
        frame = self.frames.get(wanted[0].digest)
        if frame is not None:
            return Picture(frame, wanted, known=True)
        try:
            frame = self.segmenter.encode(wanted[0].picture)
        except Exception as error:
            for question in wanted:
                self._failed(question, error)
            return None
        self.metrics.encoder_runs.inc()
        self.metrics.stages(dict(frame.timing))
        return Picture(frame, wanted)

    def _answer(self, pictures: Sequence[Picture], begun: float) -> None:
        """begun: when the questions left the queue."""
        of = {question: picture for picture in pictures for question in picture.questions}
        for question, piece in answers_of(self.segmenter, [(q, p.frame) for q, p in of.items()]):
            picture = of[question]
            if isinstance(piece, str | Mask):
                if question.stream:
                    question.give(piece)
            elif isinstance(piece, Exception):
                self._failed(question, piece)
                picture.sound = picture.sound and isinstance(piece, InputError)
            else:
                queue_ms = 1e3 * (begun - question.asked)
                answered = Answered(question, piece, picture.frame, picture.known, queue_ms)
                self._answered(question, answered)
                picture.known = True
        for picture in pictures:
            if picture.sound:
                self.frames.keep(picture.questions[0].digest, picture.frame)
            else:  # what the model had read of it may be half of something
                self.frames.drop(picture.questions[0].digest)

    def _answered(self, question: Question, answered: Answered) -> None:
        spent_ms = sum(answered.timing_ms.values()) - answered.queue_ms
        self._answer_s += 0.2 * (spent_ms / 1e3 - self._answer_s)
        self.succeeded = time.monotonic()
        self.metrics.answers.inc()
        self.metrics.masks.inc(len(answered.result.masks))
        self.metrics.frame_hits.inc(answered.reused)
        self.metrics.queue_s.observe(answered.queue_ms / 1e3)
        self.metrics.stages(dict(answered.result.timing))
        question.give(answered)

    def _failed(self, question: Question, error: Exception) -> None:
        if not isinstance(error, InputError):
            self.succeeded = -math.inf
            self.metrics.failures.inc()
            traceback.print_exception(error)  # for whoever runs the server; the client gets a sentence
        question.give(error)


def _by_picture(questions: Sequence[Question]) -> list[list[Question]]:
    """In the order in which each picture first came."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.digest, []).append(question)
    return list(groups.values())
