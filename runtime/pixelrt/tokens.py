"""The token table of a language model, gathered on the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelrt.errors import InputError

STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}


class TokenTable:
    """Embedding rows (V, H), memory-mapped: only the rows of a prompt are ever read."""

    def __init__(self, path: Path, dtype: str, shape: Sequence[int]) -> None:
        """dtype: float16, bfloat16 or float32, little endian. Raises InputError where the file has another size."""
        self.bfloat16 = dtype == "bfloat16"
        stored = np.dtype(STORED[dtype])
        size, wanted = path.stat().st_size, int(shape[0]) * int(shape[1]) * stored.itemsize
        if size != wanted or wanted == 0:
            raise InputError(
                f"{path} has {size} bytes; {shape[0]} x {shape[1]} of {dtype} are {wanted}. Export the bundle again."
            )
        self.rows: npt.NDArray[Any] = np.memmap(path, stored, "r", shape=tuple(shape))

    def __call__(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows (len(ids), H) in fp32."""
        rows = self.rows[np.asarray(ids, np.int64)]
        if self.bfloat16:  # bfloat16 is the upper half of a float32
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)
