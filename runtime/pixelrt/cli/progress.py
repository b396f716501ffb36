"""How far a long step is and how long it will take, on stderr.

On a terminal one line, rewritten; elsewhere a plain line now and then, so that a log is not flooded. Steps shorter
than SOON say nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pixelrt.cli import printable

SOON, OFTEN, SELDOM = 2.0, 0.1, 30.0  # s: before anything is said; between lines on a terminal, and elsewhere
COUNTED = 10_000  # totals below are shown as counts, others in percent


class ProgressLine:
    """Call it with what is done, how far, and of how much; close it before printing anything else."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        self._steps: dict[
            str, tuple[float, float]
        ] = {}  # step -> when it was first heard of, and how far then
        self._said = clock() + (SOON - OFTEN if self._terminal else 0)
        self._shown = False

    def __call__(self, what: str, done: float, total: float) -> None:
        now = self._clock()
        start, first = self._steps.setdefault(what, (now, done))
        if done >= total:
            del self._steps[what]
            self.close()
            return
        if now - self._said < (OFTEN if self._terminal else SELDOM):
            return
        self._said = now
        far = f"{int(done)} of {int(total)}" if total < COUNTED else f"{100 * done / total:.0f} %"
        left = f", {duration((now - start) * (total - done) / (done - first))} left" if done > first else ""
        line = f"{what}: {far}{left}"
        self._shown = self._terminal
        self._write(f"\r\x1b[2K{line}" if self._terminal else line + "\n")

    def close(self) -> None:
        """Wipe the line from the terminal."""
        if self._shown:
            self._write("\r\x1b[2K")
            self._shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, text: str) -> None:
        self._stream.write(printable(text))
        self._stream.flush()


@contextmanager
def checking(bundle: Path) -> Iterator[Callable[[int, int], None]]:
    """For `load` and `Bundle.read`, which hash many gigabytes in some bundles."""
    with ProgressLine() as line:
        yield lambda done, total: line(f"checking {bundle.name}", done, total)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`"""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
