"""Answers about the newest picture of a camera, in a thread of its own. Knows nothing of ROS but fields of messages.

What is published carries the header of the picture it was made from. An answer that failed, came too late or was
overtaken by `stop` is not published at all: a mask is never given another picture's stamp.

A bundle is changed while the old one serves. The new one is loaded, asked the question of the day and warmed up beside
it, takes over between two pictures, and is kept if it answers the first of them; else the old one answers that picture
and goes on.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import pixelrt
from pixelrt.errors import InputError
from pixelrt.image import Rgb
from pixelrt.masks import Mask
from pixelrt.queries import Classes, Query
from pixelrt.ros.health import Health, in_words
from pixelrt.ros.images import picture_of
from pixelrt.ros.messages import Numbering
from pixelrt.segmenter import Result, Segmenter
from pixelrt.tracking import Tracking

WARM_UP = "Segment the object."  # where there is no question yet


@dataclass(frozen=True)
class Options:
    """What does not change while a node is configured."""

    backend: str = "auto"
    max_new_tokens: int = 512
    numbers: str = "class"  # see `pixelrt.ros.messages.Numbering`
    tracking: bool = False
    track_every: int = 30
    track_drift: float = 0.5


@dataclass(frozen=True)
class Answered:
    """What is to be published about one picture."""

    header: Any
    picture: Rgb
    masks: Sequence[Mask]
    numbers: Sequence[int]  # of each mask in the label map
    names: Mapping[int, str]  # of all numbers so far


@dataclass(frozen=True, eq=False)
class _Question:
    query: str | Query
    numbering: Numbering


@dataclass(frozen=True, eq=False)
class _Loaded:
    path: str
    segmenter: Segmenter


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A bundle that is to take over, and who wants to know how that went: error in words, "" for none."""

    loaded: _Loaded
    done: Callable[[str, str], None]


class Worker:
    """`load`, then `ask` and `start` in any order; `put` pictures. `health` says how it goes."""

    def __init__(
        self,
        options: Options,
        health: Health,
        publish: Callable[[Answered], None],
        load: Callable[..., Segmenter] = pixelrt.load,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """publish: called in the worker's thread."""
        self.options, self.health = options, health
        self._publish, self._load, self._clock = publish, load, clock
        self._changed = threading.Condition()  # guards all below
        self._newest: Any = None  # a message that waits
        self._question: _Question | None = None
        self._loaded: _Loaded | None = None
        self._candidate: _Candidate | None = None
        self._loading = False
        self._run: object | None = None  # of the thread whose answers count
        self._thread: threading.Thread | None = None
        self._tracking: tuple[_Loaded, _Question, Tracking] | None = None  # the worker's own

    @property
    def bundle(self) -> str:
        """Path of the bundle that serves, "" for none."""
        return self._loaded.path if self._loaded else ""

    def load(self, path: str) -> None:
        """Load and warm up. Raises InputError, or whatever the backend raises."""
        loaded = self._opened(path)
        with self._changed:
            self._loaded = loaded
        self._say_about(loaded)

    def ask(self, query: str | Query) -> None:
        """The question from the next picture on. Raises InputError, and keeps the one before."""
        try:
            if self._loaded is not None:
                self._loaded.segmenter.check(query, max_new_tokens=self.options.max_new_tokens)
        except InputError as error:
            self.health.refused_question = str(error)
            raise
        known = query.names if isinstance(query, Classes) else ()
        with self._changed:
            self._question = _Question(query, Numbering(self.options.numbers, known))
            self.health.asked, self.health.refused_question = True, ""
            self._changed.notify_all()

    def put(self, message: Any) -> None:
        """A picture from the camera; it takes the place of one that waits."""
        with self._changed:
            self.health.received += 1
            self.health.last_image = self._clock()
            self.health.skipped += self._newest is not None
            self._newest = message
            self._changed.notify_all()

    def change_bundle(self, path: str, done: Callable[[str, str], None]) -> None:
        """Load another bundle beside this one. done: called once in another thread, with the path of the bundle that
        serves from then on and the error in words ("" for none). Raises InputError while another is being loaded.
        """
        with self._changed:
            if self._loading or self._candidate:
                raise InputError("another bundle is being loaded. Wait for it.")
            self._loading = True

        def load() -> None:
            try:
                candidate = _Candidate(self._opened(path), done)
            except Exception as error:
                self._refuse(path, error, done)
            else:
                with self._changed:
                    self._candidate = candidate
                    self._changed.notify_all()
            finally:
                self._loading = False

        threading.Thread(target=load, name="pixelrt bundle", daemon=True).start()

    def start(self) -> None:
        """Begin to answer. Pictures that came before are forgotten."""
        with self._changed:
            self._newest, self._run = None, object()
            self.health.active_since, self.health.last_image = self._clock(), None
            self.health.failure, self.health.busy_since = "", None
            self._thread = threading.Thread(
                target=self._work, args=(self._run,), name="pixelrt answers", daemon=True
            )
            self._thread.start()

    def stop(self, wait_s: float = 5.0) -> None:
        """Publish nothing from now on. An answer at work is waited for, not for ever: an engine may hang."""
        with self._changed:
            self._run, self.health.active_since = None, None
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    # ---- loading --------------------------------------------------------------------------------------------

    def _opened(self, path: str) -> _Loaded:
        segmenter = self._load(path, backend=self.options.backend)
        question = self._question
        query = question.query if question else WARM_UP
        if question:
            segmenter.check(query, max_new_tokens=self.options.max_new_tokens)
        if self.options.tracking:
            self._tracking_of(segmenter, query)
        # Grey that brightens: the size of a small camera, so that what is allocated once is.
        grey = np.linspace(60, 190, 640, dtype=np.uint8)
        picture = np.broadcast_to(grey[None, :, None], (480, 640, 3)).copy()
        segmenter.segment(segmenter.encode(picture), query, max_new_tokens=self.options.max_new_tokens)
        return _Loaded(path, segmenter)

    def _refuse(self, path: str, error: Exception, done: Callable[[str, str], None]) -> None:
        words = in_words(error)
        self.health.refused_bundle = f"{path}: {words}"
        done(self.bundle, words)

    def _say_about(self, loaded: _Loaded) -> None:
        self.health.refused_bundle = ""
        self.health.about |= {"bundle": loaded.path, "backend": loaded.segmenter.backend}

    # ---- the worker's thread --------------------------------------------------------------------------------

    def _work(self, run: object) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._run is not run or (self._newest is not None and self._question is not None)
                )
                if self._run is not run:
                    return
                message, self._newest = self._newest, None
                question, candidate = self._question, self._candidate
                self.health.busy_since = self._clock()
            assert question is not None and self._loaded is not None
            try:
                self._answer(run, message, question, candidate)
            except Exception as error:
                self.health.failed += 1
                self.health.failure = in_words(error)
                self._tracking = None
                gc.collect()  # what the failed answer held, where memory is short
            finally:
                self.health.busy_since = None

    def _answer(self, run: object, message: Any, question: _Question, candidate: _Candidate | None) -> None:
        stages: dict[str, float] = {}
        clock = time.perf_counter()
        picture = picture_of(message)
        stages["convert"] = 1e3 * (time.perf_counter() - clock)
        masks = self._tried(candidate, picture, question, stages) if candidate else None
        if masks is None:
            assert self._loaded is not None
            masks = self._masks(self._loaded, picture, question, stages)
        numbers, names = question.numbering(masks)
        with self._changed:
            if self._run is not run:
                return
            since = self.health.busy_since
            spent = self._clock() - since if since is not None else 0.0
        if spent > self.health.timeout_s:
            self.health.late += 1
            self.health.failure = (
                f"timeout: the last answer took {spent:.1f} s and was dropped; timeout_s is "
                f"{self.health.timeout_s:g}"
            )
            return
        published = time.perf_counter()
        self._publish(Answered(message.header, picture, masks, numbers, names))
        stages["publish"] = 1e3 * (time.perf_counter() - published)
        stages["total"] = 1e3 * (time.perf_counter() - clock)
        self.health.took(stages)
        self.health.answered += 1
        self.health.failure = ""

    def _tried(
        self, candidate: _Candidate, picture: Rgb, question: _Question, stages: dict[str, float]
    ) -> Sequence[Mask] | None:
        """The candidate's masks, and it serves from now on; or None, and it is gone."""
        try:
            masks = self._masks(candidate.loaded, picture, question, stages)
        except Exception as error:
            self._candidate = None
            self._refuse(candidate.loaded.path, error, candidate.done)
            return None
        with self._changed:
            self._loaded, self._candidate = candidate.loaded, None
        self._say_about(candidate.loaded)
        candidate.done(candidate.loaded.path, "")
        return masks

    def _masks(
        self, loaded: _Loaded, picture: Rgb, question: _Question, stages: dict[str, float]
    ) -> Sequence[Mask]:
        frame = loaded.segmenter.encode(picture)
        if self.options.tracking:
            if self._tracking is None or self._tracking[:2] != (loaded, question):
                made = self._tracking_of(loaded.segmenter, question.query)
                self._tracking = loaded, question, made
            answer: Result = self._tracking[2].step(frame)
        else:
            answer = loaded.segmenter.segment(
                frame, question.query, max_new_tokens=self.options.max_new_tokens
            )
        stages |= {**frame.timing, **answer.timing}
        return list(answer.masks)

    def _tracking_of(self, segmenter: Segmenter, query: str | Query) -> Tracking:
        return Tracking(
            segmenter,
            query,
            every=self.options.track_every,
            drift=self.options.track_drift,
            max_new_tokens=self.options.max_new_tokens,
        )
