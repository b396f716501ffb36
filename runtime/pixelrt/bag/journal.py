"""What was found in each image, a line of JSON an image in their order: a stopped run goes on behind the last line.

The first line says what was asked of what. A line is one write, forced to the disk; of one that a killed run began, the
rest is missing, so it is cut off and its image asked about again. Records are read back one by one, never all at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrt.errors import InputError

FORMAT = 1


class Journal:
    """`done`: images that are known. Use as a context: the file is locked meanwhile."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the records depend on. Raises InputError for a file made otherwise, or in use."""
        self.path, self.done = path, 0
        self._about = {"pixelrt_bag": FORMAT, **about}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{path} is being written by another run. Wait for it, or give another OUT."
                ) from None
            self._find_end()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, record: Any) -> None:
        """What the next image gave."""
        self._write(record)
        self.done += 1

    def records(self) -> Iterator[Any]:
        """All of them in order."""
        with self.path.open("rb") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)

    def _find_end(self) -> None:
        first, whole = _line(self._about), 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if whole == 0 and line != first:
                    raise self._other(line)
                self.done += whole > 0
                whole += len(line)
        os.ftruncate(self._file, whole)
        if not whole:
            self._write(self._about)

    def _other(self, line: bytes) -> InputError:
        try:
            about = json.loads(line)
            names = [name for name in self._about if about.get(name) != self._about[name]]
        except (ValueError, AttributeError):
            names = []
        what = f"was made with another {names[0]}" if names else "is not a journal of pixelrt bag"
        return InputError(f"{self.path} {what}. To begin anew: --restart; or give another OUT.")

    def _write(self, record: Any) -> None:
        line = _line(record)
        if os.write(self._file, line) < len(line):
            raise OSError(f"the disk is full: {self.path}")
        os.fsync(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _line(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
