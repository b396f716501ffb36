"""The most anonymous memory of this process while something runs, for scripts that tests start; Linux."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous() -> float:
    """MiB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


@contextmanager
def sampled() -> Iterator[list[float]]:
    """What there is at the beginning, then every millisecond."""
    found, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            found.append(anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()
