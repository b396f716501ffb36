"""One walk through a bundle's graphs: at export it is written down, on a device it is compared with what was written.

A family's walk (`pixellm.py`, `psalm.py`) calls a `Take` at every boundary and knows not which of the two it is.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pixelrt.engine import Array, Value
from pixelrt.errors import InputError
from pixelrt.goldens.sketch import CELLS, sketch

ROW_CELLS = 512  # of one token's row: the error of a row is read within 6 %


class Take(Protocol):
    def see(self, stage: str, name: str, value: Value, cells: int = CELLS, how: str = "") -> None:
        """Output `name` of a stage. how: another way to the same numbers (in a batch, alone)."""
        ...

    def fix(self, name: str, value: Value) -> Array:
        """The golden in its place, float16, so that a stage's own error alone shows in the next."""
        ...

    def choose(self, name: str, logits: NDArray[np.float32]) -> int:
        """The golden next token."""
        ...


class Making:
    """Writes down."""

    def __init__(self) -> None:
        self.seen: dict[str, Array] = {}
        self.given: dict[str, Array] = {}
        self.choices: dict[str, dict[str, Any]] = {}

    def see(self, stage: str, name: str, value: Value, cells: int = CELLS, how: str = "") -> None:
        if not how:
            self.seen[f"{stage}/{name}"] = self._finite(name, sketch(value, cells))

    def fix(self, name: str, value: Value) -> Array:
        with np.errstate(over="ignore"):
            self.given[name] = self._finite(name, np.asarray(value).astype(np.float16))
        return self.given[name]

    def choose(self, name: str, logits: NDArray[np.float32]) -> int:
        token = int(logits.argmax())  # the first of equals, as torch
        others = np.delete(self._finite(name, logits), token)
        margin = float(np.float64(logits[token]) - others.max())
        scale = float(np.sqrt(np.square(logits, dtype=np.float64).mean()))
        self.choices[name] = {"token": token, "margin": margin, "scale": scale}
        return token

    def _finite(self, name: str, array: Array) -> Array:
        if not np.isfinite(array).all():
            raise InputError(f"{name} of the golden questions is not finite")
        return array
