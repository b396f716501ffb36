"""`refs(unc).p` and its kind: the pickle in which RefCOCO, RefCOCO+ and RefCOCOg are published.

A pickle can name any Python function and have it called. This reader knows no names: lists, tuples, dicts, sets,
texts, numbers, True, False and None come from a pickle's own instructions, and everything else is refused before it is
looked up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from pixelrt.errors import InputError


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; a file of references holds plain values only"
        )


def read_refs(file: Path) -> Any:
    """What the file holds. Raises InputError."""
    try:
        data = file.read_bytes()
        # Written by Python 2: its byte strings are the texts.
        return _Plain(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Download it again.") from None
    except Exception as error:  # a damaged pickle raises whatever its instructions come upon
        words = " ".join(str(error).split())
        raise InputError(f"{file} is not a file of references ({words}). Download it again.") from None
