"""A file of JSON lines that one run at a time appends to: what journals are written in."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError


class LineFile:
    """Locked until it is closed."""

    def __init__(self, path: Path, other: str) -> None:
        """other: the option that names another file. Raises InputError for a file in use."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise InputError(
                f"{path} is being written by another run. Wait for it, or give another {other}."
            ) from None

    def write(self, record: Any) -> None:
        """One write, forced to the disk."""
        line = line_of(record)
        if os.write(self._file, line) < len(line):
            raise OSError(f"the disk is full: {self.path}")
        os.fsync(self._file)

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes: what follows is a line that a killed run began."""
        os.ftruncate(self._file, size)

    def close(self) -> None:
        os.close(self._file)


def line_of(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
