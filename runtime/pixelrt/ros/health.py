"""What diagnostics say of a node: how it is, and how long each stage takes.

ERROR: the last picture was not answered, an answer takes longer than `timeout_s`, or no picture came for `stall_s`.
WARN: there is no question yet, or a bundle or question was refused and the one before still serves. It is OK again when
the cause is gone: a picture was answered, a question taken, a bundle loaded.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pixelrt.bench.statistics import summarise
from pixelrt.errors import InputError

# diagnostic_msgs/DiagnosticStatus
OK, WARN, ERROR, STALE = 0, 1, 2, 3
KEPT = 100  # answers whose times are summed up
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|OUT_OF_MEMORY|bad_alloc|[Ff]ailed to allocate|bad allocation"
)


@dataclass(frozen=True)
class Status:
    level: int
    message: str
    values: Mapping[str, str]


@dataclass
class Health:
    """Times are of one clock in seconds; the worker writes, anybody reads."""

    timeout_s: float
    stall_s: float
    active_since: float | None = None
    last_image: float | None = None
    busy_since: float | None = None
    failure: str = ""  # why the last picture was not answered
    refused_question: str = ""
    refused_bundle: str = ""
    asked: bool = False  # there is a question
    received: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0  # a newer picture came first
    late: int = 0  # answers that came after timeout_s and were dropped
    overlays: int = 0  # drawn because somebody listens
    stages: dict[str, deque[float]] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def took(self, stages: Mapping[str, float]) -> None:
        """Milliseconds of one answer by stage."""
        for stage, spent in stages.items():
            self.stages.setdefault(stage, deque(maxlen=KEPT)).append(spent)

    def overdue(self, now: float) -> bool:
        since = self.busy_since
        return since is not None and now - since > self.timeout_s

    def status(self, now: float) -> Status:
        level, message = self._judged(now)
        values = {
            **self.about,
            "received": str(self.received),
            "answered": str(self.answered),
            "failed": str(self.failed),
            "skipped": str(self.skipped),
            "late": str(self.late),
            "overlays": str(self.overlays),
        }
        for stage, spent in list(self.stages.items()):
            found = summarise(list(spent)).percentiles  # a copy: the worker appends meanwhile
            for percent, name in ((50, "median"), (95, "95 %")):
                if (time := found[percent]) is not None:
                    values[f"{stage} ms, {name}"] = f"{time:.1f}"
        return Status(level, message, values)

    def _judged(self, now: float) -> tuple[int, str]:
        if self.active_since is None:
            return STALE, "not active"
        busy = self.busy_since
        if busy is not None and now - busy > self.timeout_s:
            return ERROR, f"timeout: an answer takes {now - busy:.1f} s; timeout_s is {self.timeout_s:g}"
        quiet = now - max(self.last_image or self.active_since, self.active_since)
        if quiet > self.stall_s:
            return ERROR, f"no image for {quiet:.1f} s; stall_s is {self.stall_s:g}. Is the camera running?"
        if self.failure:
            return ERROR, self.failure
        if not self.asked:
            return WARN, "no question yet: set the parameter prompt, or publish on the topic prompt"
        if self.refused_bundle:
            return WARN, f"the bundle was not changed: {self.refused_bundle}"
        if self.refused_question:
            return WARN, f"the question was not changed: {self.refused_question}"
        return OK, "running"


def in_words(error: BaseException) -> str:
    """One line for diagnostics; memory that ran out is called so whoever says it."""
    words = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(words):
        return f"out of memory: {words or type(error).__name__}"
    if isinstance(error, InputError):
        return words
    return f"engine error: {type(error).__name__}{': ' if words else ''}{words}"
