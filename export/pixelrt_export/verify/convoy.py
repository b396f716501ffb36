"""Several callers of one engine that wait for each other, so that each layer of it is opened once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pixelrt.bundle import GraphFile
from pixelrt.engine import Array, Memory

T = TypeVar("T")
Call = tuple[Mapping[str, Any], Mapping[str, Array] | None]  # inputs, into


class Joint(Protocol):
    """An engine that answers several calls together, in the order given."""

    file: GraphFile
    memory: Memory

    def together(self, calls: Sequence[Call]) -> list[dict[str, Array]]: ...


class Shared:
    """An engine whose caller waits, in a job of `carry`, for the other jobs."""

    def __init__(self, engine: Joint) -> None:
        self.engine, self.file, self.memory = engine, engine.file, engine.memory

    def __call__(
        self, inputs: Mapping[str, Any], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        here = threading.current_thread()
        if isinstance(here, Rider):
            return here.wait(self.engine, (inputs, into))
        return self.engine.together([(inputs, into)])[0]


class Rider(threading.Thread, Generic[T]):
    """One job. It and whoever carries it take turns: only one of them ever runs."""

    def __init__(self, job: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._job, self._go, self._stop = job, threading.Semaphore(0), threading.Semaphore(0)
        self.asks: tuple[Joint, Call] | None = None
        self.result: T
        self.error: BaseException | None = None
        self._given: dict[str, Array] | BaseException = {}

    def run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._job()
        except BaseException as error:
            self.error = error
        self._stop.release()

    def wait(self, engine: Joint, call: Call) -> dict[str, Array]:
        self.asks = engine, call
        self._stop.release()
        self._go.acquire()
        if isinstance(self._given, BaseException):
            raise self._given
        return self._given

    def advance(self, given: dict[str, Array] | BaseException) -> None:
        """Until its next call, or its end."""
        self._given, self.asks = given, None
        self._go.release()
        self._stop.acquire()
        self._given = {}  # what it was given is its own to keep


def carry(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What these jobs return, in order. All that call the same engine at a time go through it together.

    Raises what the first of them raised, once all have ended.
    """
    riders = [Rider(job) for job in jobs]
    for rider in riders:
        rider.start()
        rider.advance({})
    while waiting := [(rider, *rider.asks) for rider in riders if rider.asks is not None]:
        engine = waiting[0][1]
        here = [(rider, call) for rider, asked, call in waiting if asked is engine]
        try:
            found: Sequence[dict[str, Array] | BaseException] = engine.together([call for _, call in here])
        except Exception as error:  # the callers' own to handle: each raises it where it called
            found = [error] * len(here)
        riding = [rider for rider, _ in here]
        del waiting, here
        for rider, given in zip(riding, found, strict=True):
            rider.advance(given)
    for rider in riders:
        if rider.error is not None:
            raise rider.error
    return [rider.result for rider in riders]
