"""Weight files, one tensor at a time: `open_shard(path) -> Shard`.

A safetensors file is 8 bytes (N, little endian), N bytes of JSON {name: {dtype, shape, data_offsets}} and the
tensors; a torch file is a zip with a pickle of the names and the tensors. Both are memory-mapped, so a tensor
costs memory only while it is used. Pickles are read with `weights_only`: one that carries code is refused.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from pixelrt.errors import InputError

Shape = tuple[int, ...]

SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
LFS_POINTER = b"version https://git-lfs"
HEADER_LIMIT = 100_000_000  # bytes, the format's own


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard. `read` gives a read-only array, backed by the file where its layout allows."""

    shape: Shape
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]


Shard = dict[str, Entry]


def open_shard(path: Path) -> Shard:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(
                f"{path} is a Git LFS pointer, not the file itself: run  git lfs pull  in its folder"
            )
    return _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)


def _safetensors(path: Path) -> Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise InputError(
                f"{path} is no whole safetensors file ({size:,} bytes, its header claims {length:,}): "
                "download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {key: _safetensors_entry(path, 8 + length, size, value) for key, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has a corrupt safetensors header ({error}): download it again") from error
    _refuse_overlap(path, header)
    return entries


def _safetensors_entry(path: Path, data: int, size: int, value: dict[str, Any]) -> Entry:
    shape, (start, stop) = tuple(value["shape"]), value["data_offsets"]
    if value["dtype"] not in SAFETENSORS_DTYPES:
        wanted = ", ".join(SAFETENSORS_DTYPES)
        raise InputError(
            f"{path} stores a tensor as {value['dtype']}; pixelrt reads {wanted}: convert the file"
        )
    dtype = SAFETENSORS_DTYPES[value["dtype"]]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"shape {list(shape)} at {start}..{stop}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{stop - start} bytes for {value['dtype']} {list(shape)}")
    if data + stop > size:
        raise InputError(
            f"{path} is truncated: {size:,} bytes, and its header places data up to {data + stop:,}: "
            "download it again"
        )

    def read() -> np.ndarray:
        if start == stop:
            return np.empty(shape, dtype)
        raw = np.memmap(path, mode="r", offset=data + start, shape=(stop - start,), dtype=np.uint8)
        array = np.asarray(raw).view(dtype).reshape(shape)
        return array if array.flags.aligned else array.copy()

    return Entry(shape, dtype, read)


def _refuse_overlap(path: Path, header: dict[str, Any]) -> None:
    end = 0
    for start, stop in sorted(tuple(value["data_offsets"]) for value in header.values()):
        if start < end:
            raise InputError(f"{path} has a corrupt safetensors header (tensors overlap): download it again")
        end = stop


def _torch_file(path: Path) -> Shard:
    import torch

    with path.open("rb") as file:
        magic = file.read(2)
    whole = zipfile.is_zipfile(path)
    if magic == b"PK" and not whole:
        size = path.stat().st_size
        raise InputError(f"{path} is truncated ({size:,} bytes, the zip's end is missing): download it again")
    try:
        # torch before 1.6 wrote no zip; such a file cannot be mapped and is read whole.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a torch file ({first}): download it again") from error
    named = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for key, value in state.items()
    )
    if not named:
        raise InputError(
            f"{path} is no state dict (names and dense tensors, nothing else): save model.state_dict()"
        )
    return {key: _torch_entry(path, value) for key, value in state.items()}


def _refusal(path: Path, message: str) -> str:
    names = re.findall(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", message)
    if not names:
        return f"{path} is no torch file that can be read safely, or it is damaged: download it again"
    return (
        f"{path} carries code (its pickle asks for {names[0]}); pixelrt reads tensors and runs nothing from "
        "a checkpoint: get the weights as safetensors, or convert them where you trust the file"
    )


def _torch_entry(path: Path, tensor: Any) -> Entry:
    import torch

    dtype = np.dtype(ml_dtypes.bfloat16)
    if tensor.dtype != torch.bfloat16:
        try:
            dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        except TypeError as error:
            raise InputError(
                f"{path} stores a tensor as {tensor.dtype}, which pixelrt cannot read: convert it"
            ) from error

    def read() -> np.ndarray:
        source = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            array = source.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = source.numpy()
        array = array.view()
        array.flags.writeable = False
        return array

    return Entry(tuple(tensor.shape), dtype, read)
