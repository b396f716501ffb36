"""Times every run of every graph from outside: a backend between the family and the backend that works."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelrt.engine import Backend, Engine, HostMemory, Joined, Memory, Value

TRIALS = 2000
LANGUAGE, ROWS = "language", "inputs_embeds"  # the graph that decodes, and its input (1, S, H)


@dataclass(frozen=True)
class Call:
    """One run of a graph, in seconds of `time.perf_counter`. full: it read as many rows as its engine takes."""

    graph: str
    start: float
    stop: float
    full: bool = False


class TimedEngine:
    """An engine that notes when it was called; all else it does as the engine inside."""

    def __init__(self, graph: str, engine: Engine, calls: list[Call]) -> None:
        self.file, self.memory = engine.file, engine.memory
        self._graph, self._engine, self._calls = graph, engine, calls
        self._most = engine.memory.most(ROWS, 1) if graph == LANGUAGE else None

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        start = time.perf_counter()
        outputs = self._engine(inputs, into)
        stop = time.perf_counter()
        full = self._most is not None and inputs[ROWS].shape[1] == self._most
        self._calls.append(Call(self._graph, start, stop, full))
        return outputs


class TimedBackend:
    """A backend whose engines write to `calls`."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name = backend, backend.name
        self.calls: list[Call] = []

    def open(self, graph: str) -> Engine:
        return TimedEngine(graph, self.backend.open(graph), self.calls)

    def take(self) -> list[Call]:
        """The calls since the last time, in order."""
        taken = list(self.calls)
        self.calls.clear()
        return taken


def seconds_per_call() -> float:
    """What timing one call costs: the best of several trials with an engine that does nothing."""

    class Nothing:
        file: Any = None
        memory: Memory = HostMemory()

        def __call__(self, inputs: Mapping[str, Value | Joined], into: Any = None) -> dict[str, Value]:
            return {}

    calls: list[Call] = []
    bare, timed = Nothing(), TimedEngine("nothing", Nothing(), calls)
    best = {}
    for engine in (bare, timed):
        spent = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(TRIALS):
                engine({}, None)
            spent.append((time.perf_counter() - start) / TRIALS)
        best[engine] = min(spent)
    return max(0.0, best[timed] - best[bare])
