"""What each item gave, one line of JSON an item, written as it is known, so that a stopped run continues.

The first line says what was asked of what; a file whose first line differs is refused. A line is one write, forced to
the disk; of a run that was killed in the middle of one, the unfinished line is cut off and its item asked again.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrt.errors import InputError
from pixelrt.line_file import LineFile, line_of

VERSION = 1


class Journal:
    """`records`: item -> what it gave. Use as a context: the file is locked meanwhile."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the records depend on. Raises InputError for a file that was made otherwise, or is in use."""
        self.path = path
        self.records: dict[str, Any] = {}
        self._about = {"pixelrt_eval": VERSION, **about}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = LineFile(path, "--out")
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def add(self, item: str, record: Any) -> None:
        self._file.write({"item": item, "record": record})
        self.records[item] = record

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        first = line_of(self._about)
        try:
            if not whole and not first.startswith(data):
                raise ValueError("not the beginning of ours")
            about, *entries = [json.loads(line) for line in whole.splitlines()] or [self._about]
            self.records = {entry["item"]: entry["record"] for entry in entries}
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path} is not a journal of pixelrt eval. Give another --out.") from None
        if about != self._about:
            names = [
                name
                for name in self._about
                if not isinstance(about, dict) or about.get(name) != self._about[name]
            ]
            raise InputError(
                f"{self.path} was made with another {(names or ['version'])[0]}. "
                "Delete it, or give another --out."
            )
        self._file.cut(len(whole))
        if not whole:
            self._file.write(self._about)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
