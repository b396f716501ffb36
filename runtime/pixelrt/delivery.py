"""What a pipeline hands out for each picture that it took on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pixelrt.queries import Query
from pixelrt.segmenter import Frame, Result


class Late(TimeoutError):
    """A picture was given up because its time was over."""


@dataclass(eq=False)
class Delivery:
    """What became of one picture. Unpacks in two: `tag, answer_or_error = delivery`.

    Times are seconds of the pipeline's clock, by default time.monotonic.
    """

    tag: Any  # as given to `put`
    put_s: float
    begun_s: float = 0.0
    ready_s: float = 0.0
    prompt: str | Query | None = None  # that was answered
    frame: Frame | None = None  # the encoded picture; `frame.image` are its pixels
    answer: Result | None = None
    error: Exception | None = None  # in place of an answer: `Late`, InputError, or what the segmenter raised
    asked: bool = True  # False where `Tracking` followed the objects of an earlier answer

    @property
    def latency_ms(self) -> float:
        """From `put` until it was ready."""
        return 1e3 * (self.ready_s - self.put_s)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tag, self.answer if self.error is None else self.error))
