"""A recording on disk: a zip of `recording.json` and one `.npy` a tensor, as `numpy.load` reads it; no pickle.

    with numpy.load("wrong.npz") as file:
        about = json.loads(file["recording.json"])
        pixels = file["encoder.0.in.pixels"]

It may come from anyone, so all sizes are known to be small before anything is unpacked.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pixelrt.engine import Array
from pixelrt.errors import InputError

ABOUT = "recording.json"
LARGEST = 1 << 30  # bytes unpacked, and of the file
LARGEST_ABOUT = 64 << 20
MEMBERS = 20_000  # of a zip; 512 tokens have 4,000
DIRECTORY = MEMBERS * 256  # bytes of its list of members
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
# A zip's last 22 bytes: signature, members here and in all, bytes and place of their list.
END = struct.Struct("<4s4xHHII2x")
WRONG = (
    ValueError,
    SyntaxError,
    EOFError,
    OSError,
    KeyError,
    RuntimeError,  # and what derives from it: a recursion too deep, a compression that zipfile does not know
)


def check_target(file: Path) -> None:
    """Raises InputError where a recording cannot be written to `file`, before the model runs."""
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is no folder. Make it, or record to another file.")
    if file.exists() and not _is_recording(file):
        raise InputError(f"{file} exists and is no recording. Record to another file.")


def write(file: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Written beside `file`, then renamed. Raises InputError for more than LARGEST bytes."""
    check_target(file)
    size = sum(array.nbytes for array in arrays.values())
    if size > LARGEST - LARGEST_ABOUT:
        raise InputError(
            f"this recording has {size:,} bytes, more than {LARGEST:,}. Ask for a shorter answer."
        )
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        # Level 1: numbers hardly shrink; pictures and masks of bits do at any level.
        with zipfile.ZipFile(beside, "w", allowZip64=False) as archive:
            archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about, ensure_ascii=True, indent=1))
            for name, array in arrays.items():
                stream = io.BytesIO()
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980, so that equal recordings are equal files
                archive.writestr(entry, stream.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)
        os.replace(beside, file)
    finally:
        with suppress(OSError):
            beside.unlink()


def read(file: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """recording.json and the tensors. Raises InputError."""
    if not file.is_file():
        raise InputError(f"{file} is not a file. Give one that `pixelrt segment --record` wrote.")
    try:
        with file.open("rb") as stream:
            _check_directory(file, stream)
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
                _check_entries(file, entries)
                about = json.loads(archive.read(ABOUT))
                arrays = {
                    entry.filename.removesuffix(".npy"): _array(archive.read(entry))
                    for entry in entries
                    if entry.filename != ABOUT
                }
    except InputError:
        raise
    except (*WRONG, zlib.error, struct.error, zipfile.BadZipFile) as error:
        _refuse(file, str(error).partition("\n")[0] or type(error).__name__)
    if not isinstance(about, dict):
        _refuse(file, f"{ABOUT} is no object")
    return about, arrays


def _check_directory(file: Path, stream: io.BufferedReader) -> None:
    """The list of members is read whole by `zipfile`: it must be short."""
    size = os.fstat(stream.fileno()).st_size
    if size > LARGEST:
        raise InputError(f"{file} has {size:,} bytes; a recording has {LARGEST:,} at most. Record it again.")
    stream.seek(max(0, size - END.size))
    signature, here, members, length, _ = END.unpack(stream.read(END.size))
    if signature != b"PK\5\6":
        _refuse(file, "it does not end as a zip does")
    if here != members or members > MEMBERS or length > DIRECTORY:
        raise InputError(
            f"{file} lists more than the {MEMBERS:,} tensors a recording may have. Record it again."
        )


def _check_entries(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    strange = [name for name in names if name != ABOUT and not name.endswith(".npy")]
    if ABOUT not in names or strange or len(set(names)) < len(names):
        _refuse(file, f"it holds {strange[0]!r}" if strange else f"it has no one {ABOUT}")
    size = sum(entry.file_size for entry in entries)
    if size > LARGEST or any(e.file_size > LARGEST_ABOUT for e in entries if e.filename == ABOUT):
        raise InputError(f"{file} unpacks to {size:,} bytes, more than a recording has. Record it again.")


def _array(data: bytes) -> Array:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a tensor of another npy version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.name not in DTYPES or fortran or any(side < 0 for side in shape):
        raise ValueError(f"a tensor of type {dtype.name}")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"a tensor of {len(data) - stream.tell():,} bytes where {shape} was announced")
    array: Array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape).copy()  # may be written to
    return array


def _is_recording(file: Path) -> bool:
    """Whether this may be overwritten: a zip that begins with recording.json."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(30 + len(ABOUT))
    return head[:4] == b"PK\3\4" and head[30:] == ABOUT.encode()


def _refuse(file: Path, why: str) -> NoReturn:
    raise InputError(f"{file} is no recording of pixelrt, or a damaged one ({why}). Record it again.")
