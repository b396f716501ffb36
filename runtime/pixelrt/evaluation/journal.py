"""What each item gave, one line of JSON an item, written as it is known, so that a stopped run continues.

The first line says what was asked of what; a file whose first line differs is refused. A line is one write, forced to
the disk; of a run that was killed in the middle of one, the unfinished line is cut off and its item asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrt.errors import InputError

VERSION = 1


class Journal:
    """`records`: item -> what it gave. Use as a context: the file is locked meanwhile."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the records depend on. Raises InputError for a file that was made otherwise, or is in use."""
        self.path = path
        self.records: dict[str, Any] = {}
        self._about = {"pixelrt_eval": VERSION, **about}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{path} is being written by another run. Wait for it, or give another --out."
                ) from None
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, item: str, record: Any) -> None:
        self._write({"item": item, "record": record})
        self.records[item] = record

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        first = _line(self._about)
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
        os.ftruncate(self._file, len(whole))
        if not whole:
            self._write(self._about)

    def _write(self, entry: Any) -> None:
        line = _line(entry)
        if os.write(self._file, line) < len(line):
            raise OSError(f"the disk is full: {self.path}")
        os.fsync(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _line(entry: Any) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
