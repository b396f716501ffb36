"""One weight file for all graphs of a bundle.

Every graph names the tensors it needs; the first one to ask writes the tensor, the others get the same offset.
A tensor is made only when it is written, so export never holds more than one of them. With a `Work`, tensors that an
earlier run has written are found again instead of being made.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import ml_dtypes
import numpy as np
import onnx
from pixelrt.errors import InputError

from pixelrt_export.work import Work

PAGE = 4096  # large tensors begin at a page, so that a runtime can map them instead of copying
LINE = 64  # small ones at a cache line: a page each would cost a small model a tenth of its size
LARGE = 1 << 16
TENSOR = "tensor "  # before its name, in the journal

ONNX_DTYPES: dict[str, int] = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int4": onnx.TensorProto.INT4,
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the weight file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class Weights(Protocol):
    """Where a graph's tensors go."""

    @property
    def path(self) -> Path: ...
    def __contains__(self, name: str) -> bool: ...
    def put(self, name: str, dtype: str, make: Callable[[], np.ndarray]) -> Slot: ...


class WeightFile:
    """Append-only writer of `weights.data`; use as a context manager."""

    def __init__(
        self,
        path: Path,
        written: Callable[[str, int], None] = lambda name, values: None,
        work: Work | None = None,
        checked: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """written: called with the name of each tensor and how many values the file has then. work: keeps what is
        written, and may know of some already; checked: of these, bytes looked at and in all."""
        self.path, self._written, self._work = path, written, work
        self.slots: dict[str, Slot] = {}
        if work is not None:
            self._find(work, checked)
        self.values = sum(math.prod(slot.shape) for slot in self.slots.values())
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(self.size)  # what a killed run began
        self._file.seek(0, 2)

    def _find(self, work: Work, checked: Callable[[int, int], None]) -> None:
        """Take the tensors of the journal, up to the first whose bytes are not what was written."""
        known = [(key, work.done[key]) for key in work.done if key.startswith(TENSOR)]
        total = max((row["offset"] + row["length"] for _, row in known), default=0)
        if not known:
            return
        if not self.path.is_file():
            work.forget_from(known[0][0])
            return
        with self.path.open("rb") as stream:
            for key, row in known:
                name = key.removeprefix(TENSOR)
                slot = Slot(name, row["dtype"], tuple(row["shape"]), row["offset"], row["length"])
                if _crc(stream, slot) != row["crc"]:
                    work.forget_from(key)
                    return
                self.slots[name] = slot
                checked(slot.offset + slot.length, total)

    def __contains__(self, name: str) -> bool:
        return name in self.slots

    def put(self, name: str, dtype: str, make: Callable[[], np.ndarray]) -> Slot:
        """The slot of tensor `name`, made and appended in `dtype` on first use.

        dtype: float32, float16, uint8, int8, or int4 (made as int8, two values a byte, the first one in the low half).

        Raises InputError when a value does not fit `dtype`, ValueError when one name is asked for in two types.
        """
        if name in self.slots:
            if self.slots[name].dtype != dtype:
                raise ValueError(f"weight {name} is stored as {self.slots[name].dtype}, asked for as {dtype}")
            return self.slots[name]
        values = make()
        array = packed(values) if dtype == "int4" else narrowed(name, values, dtype)
        alignment = PAGE if array.nbytes >= LARGE else LINE
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        array.tofile(self._file)
        slot = self.slots[name] = Slot(name, dtype, values.shape, offset, array.nbytes)
        if self._work is not None:
            self._file.flush()
            row = {key: value for key, value in asdict(slot).items() if key != "name"}
            self._work.note(TENSOR + name, {**row, "crc": zlib.crc32(array)})
        self.values += values.size
        self._written(name, self.values)
        return slot

    def read(self, name: str) -> np.ndarray:
        """A tensor that was written, in the type it was made in."""
        slot = self.slots[name]
        self._file.flush()
        if slot.dtype == "int4":
            return unpacked(np.fromfile(self.path, np.uint8, slot.length, offset=slot.offset), slot.shape)
        kind = np.dtype(slot.dtype)
        count = slot.length // kind.itemsize
        return np.fromfile(self.path, kind, count, offset=slot.offset).reshape(slot.shape)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return max((slot.offset + slot.length for slot in self.slots.values()), default=0)

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def packed(values: np.ndarray) -> np.ndarray:
    """Values -8..7 in int8, row-major, two a byte: ONNX's layout of INT4."""
    flat = values.reshape(-1)
    if len(flat) % 2 or flat.dtype != np.int8 or flat.min(initial=0) < -8 or flat.max(initial=0) > 7:
        raise ValueError("int4 tensors are made as an even number of int8 values from -8 to 7")
    nibbles = flat.view(np.uint8) & 15
    return np.asarray(nibbles[::2] | nibbles[1::2] << 4, np.uint8)


def unpacked(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The int8 values of `packed` bytes."""
    signed, pairs = data.view(np.int8), np.empty((len(data), 2), np.int8)
    pairs[:, 0], pairs[:, 1] = (signed << 4) >> 4, signed >> 4  # shifts carry the sign
    return pairs.reshape(shape)


def narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` in `dtype`, C order. A value that is not finite, or would not be in `dtype`, is refused."""
    wide = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype, order="C")
    if np.isfinite(narrow).all():
        return narrow
    if np.isfinite(wide).all():
        raise InputError(
            f"{name} does not fit {dtype}: its largest magnitude is {np.abs(wide).max():g}. "
            "Export this stage with precision fp32."
        )
    raise InputError(f"{name} holds values that are not finite. Get the checkpoint again.")


def _crc(stream: BinaryIO, slot: Slot) -> int:
    """CRC-32 of a tensor's bytes in the file."""
    stream.seek(slot.offset)
    value, left = 0, slot.length
    while left and (piece := stream.read(min(left, 1 << 20))):
        value, left = zlib.crc32(piece, value), left - len(piece)
    return value
