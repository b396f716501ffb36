"""The language graph with its cache, for one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelrt.engine import Array, Engine, activation_dtype


@dataclass(frozen=True)
class Rows:
    """What the language graph says about the rows asked for."""

    logits: npt.NDArray[np.float32]  # (R, V)
    hidden: Array  # (R, H), after the final norm


class Context:
    """A sequence being read: positions so far and their keys and values.

    Call it with the embeddings of the next tokens; the cache keeps everything before them.
    """

    def __init__(self, engine: Engine, capacity: int) -> None:
        """capacity: tokens this context can ever hold."""
        self.engine, self.capacity, self.length = engine, capacity, 0
        self.visible = np.zeros(capacity, np.bool_)
        self.forwards = 0
        in_place = engine.file.cache == "in_place"
        dtype: np.dtype[Any] = activation_dtype(engine)
        self._past: dict[str, Array] = {}
        for tensor in engine.file.inputs:
            if tensor.name.startswith("past."):
                _, heads, _, width = tensor.shape
                shape = (1, int(heads), capacity if in_place else 0, int(width))
                self._past[tensor.name] = np.zeros(shape, dtype)
        self._in_place = in_place

    def __call__(
        self, embeddings: Array, rows: Sequence[int], visible: npt.NDArray[np.bool_] | None = None
    ) -> Rows:
        """Append embeddings (S, H); rows: indices among the S that get logits and hidden states.

        visible: see `read`.
        """
        outputs = self.read(embeddings, {"logit_rows": np.asarray(rows, np.int64)}, visible)
        return Rows(outputs["logits"][0], outputs["hidden"][0])

    def read(
        self,
        embeddings: Array,
        asked: Mapping[str, Array],
        visible: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, Array]:
        """Append embeddings (S, H); gives the graph's outputs for what is asked of these S rows.

        asked: the inputs that only this model's graph has. visible (S,): tokens that no later token may look at
        are False (a token always sees itself).
        """
        count, start = len(embeddings), self.length
        end = start + count
        if end > self.capacity:
            raise ValueError(f"context of {self.capacity} tokens cannot take {end}")
        self.visible[start:end] = True if visible is None else visible
        position = np.arange(start, end)
        causal = np.arange(end)[None] <= position[:, None]
        inputs: dict[str, Array] = {
            "inputs_embeds": embeddings[None],
            "position_ids": position[None],
            "attn_mask": (causal & self.visible[:end])[None, None],
            **asked,
            **self._past,
        }
        into: dict[str, Array] = {}
        if self._in_place:
            inputs["write_indices"] = np.array([start], np.int64)
            into = {_present(name): buffer for name, buffer in self._past.items()}
        outputs = self.engine(inputs, into)
        if not self._in_place:
            self._past = {name: outputs[_present(name)] for name in self._past}
        self.length = end
        self.forwards += 1
        return outputs

    def rewind(self, length: int, capacity: int | None = None) -> None:
        """Forget all but the first `length` tokens. capacity: tokens to have room for from now on, at least."""
        if not 0 <= length <= self.length:
            raise ValueError(f"context of {self.length} tokens cannot go back to {length}")
        more = max(0, (capacity or 0) - self.capacity)
        self.length, self.capacity = length, self.capacity + more
        self.visible = np.pad(self.visible, (0, more))
        for name, cache in self._past.items():
            if not self._in_place:
                self._past[name] = cache[:, :, :length]
            elif more:
                self._past[name] = np.pad(
                    cache[:, :, :length], ((0, 0), (0, 0), (0, self.capacity - length), (0, 0))
                )


def _present(past: str) -> str:
    return "present." + past.removeprefix("past.")
