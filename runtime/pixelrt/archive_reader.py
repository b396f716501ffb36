"""`unpack`: from an archive to a bundle, or to one sentence. The format is in archive.py."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pixelrt.archive import (
    BLOCK,
    LICENSES,
    LINE,
    PIECE,
    RECORD,
    SUMS,
    Progress,
    check_room,
    is_inside,
    padded,
)
from pixelrt.bundle import Bundle
from pixelrt.engines import FOLDER as ENGINES
from pixelrt.errors import InputError
from pixelrt.manifest import MANIFEST

SUMS_MAX = 1 << 20  # bytes; 100 a member
_TYPES = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def unpack(file: Path, folder: Path, *, progress: Progress = lambda name, done, total: None) -> Bundle:
    """Write the bundle in the archive `file` to `folder`, which is new or empty.

    The files are written beside it, hashed on the way, and checked against the manifest; then the folder gets its name.
    Raises InputError; then nothing is left.
    """
    if not file.is_file():
        raise InputError(f"{file} is no file. Give an archive that `pixelrt pack` wrote.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already. Give the name of a new folder.")
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    total = file.stat().st_size
    check_room(target.parent, total)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    beside.mkdir()
    try:
        with file.open("rb") as stream, _named(file):
            found = _extract(stream, beside, total, lambda name, done: progress(name, done, total))
        _check_bundle(file, beside, found)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    progress("", total, total)
    return Bundle.read(folder, verify=False)


class _Unusable(Exception):
    """What is wrong with an archive, after its name."""


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except _Unusable as error:
        raise InputError(f"{file} {error}. Copy it again, or pack the bundle again.") from None


def _extract(
    stream: BinaryIO, folder: Path, total: int, progress: Callable[[str, int], None]
) -> dict[str, str]:
    """Write every member below `folder`; gives their hashes by name."""
    first = _header(stream, total)
    if first is None or first.name != SUMS or first.size > SUMS_MAX:
        raise _Unusable(f"is no archive of `pixelrt pack`: it does not begin with {SUMS}")
    wanted = _sums(stream.read(first.size))
    stream.seek(padded(first.size) - first.size, os.SEEK_CUR)
    left = dict(wanted)
    while (member := _header(stream, total)) is not None:
        if member.name not in left:
            what = "twice" if member.name in wanted else f"which {SUMS} does not list"
            raise _Unusable(f"holds {member.name!r:.120}, {what}")
        place = folder / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), member.size
        with place.open("xb") as out:
            while size:
                piece = stream.read(min(PIECE, size))
                if not piece:
                    raise _Unusable("is cut off")
                digest.update(piece)
                out.write(piece)
                size -= len(piece)
                progress(member.name, stream.tell())
        if digest.hexdigest() != left.pop(member.name):
            raise _Unusable(f"is damaged: the SHA-256 of {member.name} is not the one in {SUMS}")
        stream.seek(padded(member.size) - member.size, os.SEEK_CUR)
    if left:
        raise _Unusable(f"lacks {min(left)}")
    return wanted


def _header(stream: BinaryIO, total: int) -> tarfile.TarInfo | None:
    """The next member, whose data lies whole in the archive of `total` bytes; None at its end."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise _Unusable("is cut off")
    if not any(block):
        rest = stream.read(RECORD + 1)
        if len(rest) < BLOCK or any(rest) or len(rest) > RECORD:
            raise _Unusable("is cut off, or something follows its end")
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError):
        raise _Unusable("is no archive of `pixelrt pack`, or damaged: a header cannot be read") from None
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        what = _TYPES.get(info.type, "an entry that is no plain file")
        raise _Unusable(f"holds {what} ({info.name!r:.120}), which no bundle has")
    if not 0 <= info.size <= total - stream.tell():
        raise _Unusable(f"is cut off: {info.name!r:.120} should have {info.size:,} bytes")
    return info


def _sums(raw: bytes) -> dict[str, str]:
    """Name -> hash of a SHA256SUMS; every name is safe to join to a folder."""
    wanted: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            raise _Unusable(f"is damaged: {SUMS} has the line {line!r:.120}")
        sha256, name = match.groups()
        if not is_inside(name):
            raise _Unusable(f"names {name!r:.120}, which lies outside of the bundle: do not use it")
        if name in wanted:
            raise _Unusable(f"lists {name} twice")
        wanted[name] = sha256
    for name in wanted:
        if any(str(parent) in wanted for parent in PurePosixPath(name).parents):
            raise _Unusable(f"lists {name} inside of a file")
    return wanted


def _check_bundle(file: Path, folder: Path, found: dict[str, str]) -> None:
    """What was unpacked is a bundle, all of it, and what its manifest says."""
    try:
        listed = Bundle.read(folder, verify=False).manifest["files"]
    except InputError as error:
        raise InputError(f"{file} holds no bundle that this pixelrt reads. {error}") from None
    with _named(file):
        for name, sha256 in found.items():
            if name in listed and listed[name]["sha256"] != sha256:
                raise _Unusable(f"holds another {name} than its manifest says")
            if name not in (*listed, MANIFEST, LICENSES) and not name.startswith(f"{ENGINES}/"):
                raise _Unusable(f"holds {name}, which is no part of a bundle")
