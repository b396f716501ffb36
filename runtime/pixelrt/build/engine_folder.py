"""The folder of one target's engines while it is being filled. Whatever ends a build, what lies there is whole.

An engine is written as `.NAME.partial`, flushed, taken off the list, renamed, and put on the list again with its hash.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pixelrt.bundle import sha256_of
from pixelrt.engines import EngineRecord, Engines, read_engines, write_engines
from pixelrt.errors import InputError

TIMING = "timing.cache"
PARTIAL = ".{}.partial"


@dataclass
class EngineFolder:
    engines: Engines

    @property
    def path(self) -> Path:
        return self.engines.folder

    def partial(self, name: str) -> Path:
        return self.path / PARTIAL.format(name)

    def holds(self, record: EngineRecord) -> bool:
        """Whether this very engine is here and whole; `record` says what it should be, but for its file."""
        here = self.engines.records.get(record.graph)
        if here is None:
            return False
        same = replace(
            record,
            bytes=here.bytes,
            sha256=here.sha256,
            layers=here.layers,
            seconds=here.seconds,
            refused=here.refused,
        )
        file = self.path / here.file
        return same == here and file.is_file() and sha256_of(file) == here.sha256

    def put(self, record: EngineRecord) -> EngineRecord:
        """Take over the finished partial file of this record; gives the record with its size and hash."""
        partial = self.partial(record.file)
        record = replace(record, bytes=partial.stat().st_size, sha256=sha256_of(partial))
        self._list(None, record.graph)  # from here to the end the engine is not there, rather than another
        partial.replace(self.path / record.file)
        _flush(self.path)
        self._list(record, record.graph)
        return record

    def keep_timing(self) -> None:
        with suppress(FileNotFoundError):
            self.partial(TIMING).replace(self.path / TIMING)

    def clear_partials(self) -> None:
        for file in self.path.glob(PARTIAL.format("*")):
            file.unlink()

    def _list(self, record: EngineRecord | None, graph: str) -> None:
        others = {name: other for name, other in self.engines.records.items() if name != graph}
        self.engines = replace(self.engines, records=others | ({graph: record} if record else {}))
        write_engines(self.engines)


@contextmanager
def opened(path: Path, target: str) -> Iterator[EngineFolder]:
    """Make the folder, or go on in it, for this process alone. Raises InputError where another one builds there."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except OSError:
            raise InputError(f"Another build is at work in {path}. Wait for it to end.") from None
        try:
            engines = read_engines(path)
        except InputError:
            engines = Engines(path, target, {})
        folder = EngineFolder(engines)
        folder.clear_partials()
        try:
            yield folder
        finally:
            folder.clear_partials()


def _flush(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
