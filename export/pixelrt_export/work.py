"""The folder beside a destination in which a bundle grows, so that an export that was killed goes on where it was.

    .NAME.partial/
      lock            held by the process at work here
      journal.jsonl   one {"key", "value"} a line: first the job that this is part of, then what is done
      bundle/         gets the bundle's name when it is whole
      arrays-N.npz    where calibration stands

A line is written after the bytes it speaks of, and nothing is believed: where a line is torn, or bytes are not those
of their checksum, that line and all after it count as never written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.errors import InputError

JOURNAL, LOCK, BUNDLE, JOB = "journal.jsonl", "lock", "bundle", "job"
ARRAYS = "arrays"
SPARE = 0.15  # of the bundle's bytes so far: what may be written to resume from, in all


class Concluded(RuntimeError):
    """Ends an export for good: nothing of its work is kept."""


class Work:
    """Use `work_on`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self._journal = folder, folder / BUNDLE, folder / JOURNAL
        self.done: dict[str, Any] = {}  # key -> value, in the order of the journal

    # ---- the journal ------------------------------------------------------------------------------------

    def begin(self, job: Mapping[str, Any], restart: bool = False) -> str | None:
        """Take up what is there of `job`; else begin anew.

        Returns None where nothing is there, "" where it goes on, or why what was there is of no use.
        """
        self.done = _read(self._journal)
        found = self.done.get(JOB)
        if found == job and not restart:
            self.bundle.mkdir(exist_ok=True)
            return ""
        reason = None
        if isinstance(found, dict):
            changed = [key for key in job if found.get(key) != job[key]]
            reason = "a new start was asked for" if restart else f"{' and '.join(changed)} changed"
        self.clear()
        self.bundle.mkdir()
        self.note(JOB, job)
        return reason

    def clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.done = {}

    def note(self, key: str, value: Any) -> None:
        """Write a line; the last one of a key counts."""
        line = json.dumps({"key": key, "value": value}).encode() + b"\n"
        with self._journal.open("ab", buffering=0) as journal:
            journal.write(line)
        self.done.pop(key, None)
        self.done[key] = value

    def forget_from(self, key: str) -> None:
        """This line and all after it."""
        names = list(self.done)
        for later in names[names.index(key) :]:
            del self.done[later]
        new = self._journal.with_suffix(".new")
        new.write_text("".join(json.dumps({"key": k, "value": v}) + "\n" for k, v in self.done.items()))
        new.replace(self._journal)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives (JSON), made once over all runs."""
        if key not in self.done:
            self.note(key, make())
        return self.done[key]

    # ---- files ------------------------------------------------------------------------------------------

    def file(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `name` in the bundle, written once over all runs. For files that come before all tensors."""
        key, path = f"file {name}", self.bundle / name
        if key in self.done and (not path.is_file() or self.done[key] != checksum_of(path)):
            self.forget_from(key)
        if key not in self.done:
            write(path)
            self.note(key, checksum_of(path))

    def keep_arrays(
        self, step: int, arrays: Callable[[], dict[str, np.ndarray]], size: int, written: int
    ) -> None:
        """Keep arrays of `size` bytes to resume from, in place of those kept before, where disk allows it.

        written: bytes of the bundle so far; what is kept over time stays below SPARE of that.
        """
        old = self.done.get(ARRAYS, {"written": 0})
        if old["written"] + size > SPARE * written or old.get("step") == step:
            return
        path = self.folder / f"{ARRAYS}-{step}.npz"
        np.savez(path, **arrays())  # type: ignore[arg-type]
        total = old["written"] + path.stat().st_size
        self.note(ARRAYS, {"step": step, "written": total, "checksum": checksum_of(path)})
        for other in self.folder.glob(f"{ARRAYS}-*.npz"):
            if other != path:
                other.unlink()

    def kept_arrays(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """The step and the arrays kept last."""
        if ARRAYS not in self.done:
            return None
        step = int(self.done[ARRAYS]["step"])
        path = self.folder / f"{ARRAYS}-{step}.npz"
        if not path.is_file() or checksum_of(path) != self.done[ARRAYS]["checksum"]:
            return None
        with np.load(path) as kept:
            return step, dict(kept)


def checksum_of(path: Path) -> list[int]:
    """[bytes, CRC-32]: finds what a crash left half written; not meant against forgery."""
    value = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            value = zlib.crc32(piece, value)
    return [path.stat().st_size, value]


@contextmanager
def work_on(target: Path, suffix: str = ".partial") -> Iterator[Work]:
    """The work folder of a destination, for one process at a time. Raises InputError where another has it.

    It is gone afterwards, but for an end that was not meant (Ctrl-C, a full disk): then the same command goes on.
    """
    folder = target.with_name(f".{target.name}{suffix}")
    lock = _locked(folder, target)
    keep = False
    try:
        yield Work(folder)
    except (InputError, Concluded):
        raise
    except BaseException:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path, target: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # the other one has just finished
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Held, but perhaps of a folder that its owner has removed meanwhile.
            if os.fstat(lock).st_ino == os.stat(folder / LOCK).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            raise InputError(
                f"{target} is being written by another export. Wait for it, or give another folder."
            ) from None
        except FileNotFoundError:
            pass
        os.close(lock)


def _read(journal: Path) -> dict[str, Any]:
    """The lines up to the first that is torn; the file is cut there."""
    done: dict[str, Any] = {}
    try:
        raw = journal.read_bytes()
    except FileNotFoundError:
        return done
    end = 0
    for line in raw.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
            key, value = entry["key"], entry["value"]  # type: ignore[index]
        except (ValueError, TypeError, KeyError):
            break
        done.pop(key, None)
        done[key] = value
        end += len(line)
    if end < len(raw):
        os.truncate(journal, end)
    return done
