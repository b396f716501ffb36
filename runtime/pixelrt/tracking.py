"""One question through a video: asked now and then, its objects followed in the frames between.

    tracking = Tracking(segmenter, "Segment the mug.", every=30)
    for image in camera:
        answer = tracking.step(image)     # tracking.asked: whether this frame was asked about

PixelLM: the hidden states that predicted an answer's codebook tokens are kept, and a frame costs its encoder and the
pixel decoder. PSALM: the objects of an answer are followed by `track`; a frame costs as much as a question about so
many regions, which is less than one about many classes, and an object keeps its place in the list.

The question is asked again after `every` frames, and on a frame where its objects drift: where for one of them

    IoU(mask, mask in the frame before) < drift      or      score < drift * score in the first frame after asking

An empty mask and one with pixels have IoU 0, so that vanishing and appearing count; two empty ones have 1. Pictures of
another size are asked about too. What slips from one object to another slowly is not seen: that is what `every` is for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pixelrt.errors import InputError
from pixelrt.evaluation.measures import iou
from pixelrt.masks import Mask
from pixelrt.queries import Query, Regions
from pixelrt.results import Tracked
from pixelrt.segmenter import Drawer, Frame, Result, Segmenter, Tracker, frame_of


class Tracking:
    """See above. One thread at a time may call `step`; any may call `ask_again`."""

    def __init__(
        self,
        segmenter: Segmenter,
        prompt: str | Query,
        every: int = 30,
        drift: float = 0.5,
        max_new_tokens: int = 512,
    ) -> None:
        """every: frames from one question to the next at most. drift: 0 never asks for drifting, 1 for any change.

        A PSALM's `Regions` are places of the first frame: they are not asked about again but by `ask_again`.
        Raises InputError, also for a prompt that `segmenter.segment` would refuse.
        """
        if type(every) is not int or every < 1:
            raise InputError(f"every is {every!r}. Give a number of frames, 1 or more.")
        if not isinstance(drift, int | float) or not 0 <= drift <= 1:
            raise InputError(f"drift is {drift!r}. Give a number from 0 to 1.")
        if not isinstance(segmenter, Drawer | Tracker):
            raise InputError(
                f"{segmenter.bundle.path} is of family {segmenter.bundle.manifest['family']!r}, which cannot follow "
                "objects. Ask about every frame."
            )
        segmenter.check(prompt, max_new_tokens=max_new_tokens)
        self.segmenter, self.every, self.drift = segmenter, every, drift
        self.max_new_tokens = max_new_tokens
        self.prompt = prompt  # that the last answer belongs to
        self.asked = False  # whether the last step asked
        self.questions = 0
        self._following: _Drawn | _Followed | None = None
        self._since = 0  # frames since the question
        self._scores: list[float] = []  # in the first frame after it
        self._placed = False  # the question was places of a frame, and is over
        self._next: str | Query | None = None  # to be asked about on the next step
        self._choosing = threading.Lock()

    def step(self, image: Any) -> Result:
        """The answer for the next frame: labels and text are those of the question asked last.

        image: as `encode` takes it, or a Frame. After an error the next step asks.
        """
        frame = frame_of(self.segmenter, image)
        with self._choosing:
            again, self._next = self._next, None
        following, self._following = self._following, None
        if again is not None:
            self.prompt, self._placed = again, False
        elif following and (self._since < self.every or self._placed):
            before = following.masks
            result = following.step(frame)
            scores = [mask.score for mask in following.masks]
            if self._since == 1:
                self._scores = scores
            if self._placed or not self._drifted(before, following.masks):
                self._following = following
                self.asked, self._since = False, self._since + 1
                return result
        return self._ask(frame)

    def ask_again(self, prompt: str | Query | None = None) -> None:
        """Ask on the next step; prompt: from then on this one. Raises InputError for a prompt that is refused."""
        if prompt is not None:
            self.segmenter.check(prompt, max_new_tokens=self.max_new_tokens)
        with self._choosing:
            self._next = prompt if prompt is not None else self._next or self.prompt

    def _ask(self, frame: Frame) -> Result:
        if self._placed:
            raise InputError("The regions were places of an earlier frame. Mark them anew, with ask_again.")
        result = self.segmenter.segment(frame, self.prompt, max_new_tokens=self.max_new_tokens)
        self._placed = isinstance(self.prompt, Regions)
        self.asked, self._since, self.questions = True, 1, self.questions + 1
        if isinstance(self.segmenter, Drawer):
            self._following = _Drawn(self.segmenter, result)
            return result
        assert isinstance(self.segmenter, Tracker)
        try:
            self._following = _Followed(self.segmenter, frame, result.masks)
        except InputError:  # objects too small or too many to be marked: they are asked about again
            if self._placed:
                raise
        return result

    def _drifted(self, before: Sequence[Mask], now: Sequence[Mask]) -> bool:
        return any(
            old.mask.shape != new.mask.shape  # another camera
            or iou(old.mask, new.mask) < self.drift
            or new.score < self.drift * score
            for old, new, score in zip(before, now, self._scores, strict=True)
        )


class _Drawn:
    """The targets of an answer, drawn in each frame."""

    def __init__(self, segmenter: Drawer, answer: Any) -> None:
        """answer: `pixelrt.masks.Answer`."""
        self._segmenter, self._answer = segmenter, answer
        self.masks: list[Mask] = list(answer.masks)

    def step(self, frame: Frame) -> Result:
        timing: dict[str, float] = {}
        if self.masks:
            drawn = self._segmenter.draw(frame, self._answer.targets, timing)
            self.masks = [
                replace(mask, label=asked.label, span=asked.span)
                for mask, asked in zip(drawn, self._answer.masks, strict=True)
            ]
        answer: Result = replace(self._answer, masks=self.masks, timing=timing)
        return answer


class _Followed:
    """The objects of an answer, followed by the family's own `track`, which is given one frame at a time."""

    def __init__(self, segmenter: Tracker, frame: Frame, masks: Iterable[Mask]) -> None:
        """Raises InputError for objects that cannot be marked."""
        self.masks = [mask for mask in masks if mask.box is not None]
        self._labels = [mask.label for mask in self.masks]
        self._frames: deque[Frame] = deque()
        self._results: Iterator[Tracked] = iter(())
        if self.masks:
            marked = Regions(masks=[mask.mask for mask in self.masks])
            self._results = segmenter.track(iter(self._frames.popleft, None), marked)
            self._frames.append(frame)
            next(self._results)

    def step(self, frame: Frame) -> Result:
        if not self.masks:
            return Tracked([], np.zeros(frame.image.shape[:2], np.int32))
        self._frames.append(frame)
        result = next(self._results)
        self.masks = [
            replace(mask, label=label) for mask, label in zip(result.masks, self._labels, strict=True)
        ]
        return replace(result, masks=self.masks)
