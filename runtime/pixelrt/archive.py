"""One file for a whole bundle, for machines without a network: `pack`, and `unpack` in archive_reader.py.

A plain tar (`tar tf` lists it), its members in this order:

    SHA256SUMS      HASH  NAME, a line for each other member, as `sha256sum -c` reads it
    LICENSES.txt    what the manifest says of the weights' licence, and the licence of pixelrt's own part
    manifest.json   then the other files of the bundle by name; engines/… last, where they were asked for

Names, sizes and contents decide every byte: no times, owners or modes. `archive_reader.py` takes nothing else: one
header block a member, plain files only, each listed in SHA256SUMS, once. Hashes in an archive guard against accidents;
against a forged archive compare the manifest's hash, which both commands print.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pixelrt.bundle import Bundle, sha256_of
from pixelrt.engines import FOLDER as ENGINES
from pixelrt.errors import InputError
from pixelrt.manifest import MANIFEST

SUMS, LICENSES = "SHA256SUMS", "LICENSES.txt"
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
PIECE = 1 << 20  # bytes in memory at a time
NAME_MAX = 100  # bytes that one header block holds
LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\\\x7f]+)")
Progress = Callable[[str, int, int], None]  # member, bytes done, bytes in all


@dataclass(frozen=True)
class Member:
    """One file to pack. source: its path, or its content."""

    name: str
    source: Path | bytes
    sha256: str

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def pack(
    bundle: Path, file: Path, *, engines: bool = False, progress: Progress = lambda name, done, total: None
) -> str:
    """Write the bundle to the archive `file`; returns the SHA-256 of its manifest.

    Every file is hashed as it is read, and compared with the manifest. engines: those built for GPUs too. Raises
    InputError; then nothing is left at `file`.
    """
    read = Bundle.read(bundle, verify=False)
    if file.exists():
        raise InputError(f"{file} exists already. Remove it, or give another name.")
    if bundle.resolve() in file.resolve().parents:
        raise InputError(f"{file} would lie in the bundle that it holds. Give a place outside of {bundle}.")
    members = list(_members(read, engines))
    text = "".join(f"{m.sha256}  {m.name}\n" for m in members).encode()
    members.insert(0, Member(SUMS, text, hashlib.sha256(text).hexdigest()))
    total = sum(BLOCK + padded(m.size) for m in members) + 2 * BLOCK
    total = -(-total // RECORD) * RECORD
    file.parent.mkdir(parents=True, exist_ok=True)
    check_room(file.parent, total)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as out:
            for member in members:
                _write(out, member, lambda name, done: progress(name, done, total))
            out.write(bytes(total - out.tell()))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    progress("", total, total)
    return read.sha256


def _members(bundle: Bundle, engines: bool) -> Iterator[Member]:
    listed: dict[str, Any] = bundle.manifest["files"]
    for name in (SUMS, LICENSES):
        if name in listed:
            raise InputError(f"{bundle.path} holds a file {name}, which is the archive's own. Rename it.")
    text = licences_of(bundle.manifest).encode()
    yield _checked(Member(LICENSES, text, hashlib.sha256(text).hexdigest()))
    yield Member(MANIFEST, bundle.path / MANIFEST, bundle.sha256)
    for name in sorted(listed):
        yield _checked(Member(name, bundle.file(name), listed[name]["sha256"]))
    if engines:
        for path in sorted((bundle.path / ENGINES).rglob("*")):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise InputError(f"{path} is a link or no plain file. Build the engines again.")
            if path.is_file() and not path.name.startswith("."):  # those a stopped build left
                name = path.relative_to(bundle.path).as_posix()
                yield _checked(Member(name, path, sha256_of(path)))


def _checked(member: Member) -> Member:
    plain = LINE.fullmatch(f"{'0' * 64}  {member.name}") is not None
    if not plain or not is_inside(member.name) or len(member.name.encode()) > NAME_MAX:
        raise InputError(
            f"the bundle holds a file named {member.name!r:.120}; an archive takes plain names of {NAME_MAX} bytes."
        )
    return member


def _write(out: BinaryIO, member: Member, progress: Callable[[str, int], None]) -> None:
    info = tarfile.TarInfo(member.name)  # time 0, no owner, mode 644
    info.size = member.size
    out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
    if isinstance(member.source, bytes):
        out.write(member.source)
    else:
        digest, left = hashlib.sha256(), info.size
        with member.source.open("rb") as stream:
            while left and (piece := stream.read(min(PIECE, left))):
                digest.update(piece)
                out.write(piece)
                left -= len(piece)
                progress(member.name, out.tell())
        if left or digest.hexdigest() != member.sha256:
            raise InputError(
                f"{member.source} was altered: its SHA-256 is not the one that was recorded. "
                "Copy or export the bundle again."
            )
    out.write(bytes(padded(info.size) - info.size))


def licences_of(manifest: dict[str, Any]) -> str:
    """What travels as LICENSES.txt."""
    made_from = manifest.get("provenance", {}).get("checkpoint", "a checkpoint that is not named")
    stated = manifest.get("license") or "not stated"
    return (
        f"Weights, token table and tokenizer of {manifest['name']}, made from {made_from}: {stated}\n\n"
        "Graphs, manifest and, where there are any, GPU kernels, made by pixelrt: Apache-2.0, below.\n\n"
        f"{_own_licence()}"
    )


def _own_licence() -> str:
    beside = Path(__file__).resolve().parents[2] / "LICENSE"  # of a checkout
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        packed = [file for file in files("pixelrt") or () if file.name == "LICENSE"]
    except PackageNotFoundError:
        packed = []
    return (
        packed[0].read_text(encoding="utf-8") if packed else "https://www.apache.org/licenses/LICENSE-2.0\n"
    )


def is_inside(name: str) -> bool:
    """Whether this is a plain relative path that stays in its folder."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and not {"", ".", ".."} & {*path.parts, name}


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed. "
            "Make room, or choose another disk."
        )
