"""What was found in each image, a line of JSON an image in their order: a stopped run goes on behind the last line.

The first line says what was asked of what. A line is one write, forced to the disk; of one that a killed run began, the
rest is missing, so it is cut off and its image asked about again. Records are read back one by one, never all at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrt.errors import InputError
from pixelrt.line_file import LineFile, line_of

FORMAT = 1


class Journal:
    """`done`: images that are known. Use as a context: the file is locked meanwhile."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the records depend on. Raises InputError for a file made otherwise, or in use."""
        self.path, self.done = path, 0
        self._about = {"pixelrt_bag": FORMAT, **about}
        self._file = LineFile(path, "OUT")
        try:
            self._find_end()
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Any) -> None:
        """What the next image gave."""
        self._file.write(record)
        self.done += 1

    def records(self) -> Iterator[Any]:
        """All of them in order."""
        with self.path.open("rb") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)

    def _find_end(self) -> None:
        first, whole = line_of(self._about), 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if whole == 0 and line != first:
                    raise self._other(line)
                self.done += whole > 0
                whole += len(line)
        self._file.cut(whole)
        if not whole:
            self._file.write(self._about)

    def _other(self, line: bytes) -> InputError:
        try:
            about = json.loads(line)
            names = [name for name in self._about if about.get(name) != self._about[name]]
        except (ValueError, AttributeError):
            names = []
        what = f"was made with another {names[0]}" if names else "is not a journal of pixelrt bag"
        return InputError(f"{self.path} {what}. To begin anew: --restart; or give another OUT.")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
