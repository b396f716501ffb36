"""The language graph with its cache, for one answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pixelrt.engine import CACHE_IN, CACHE_OUT, Array, Engine, Joined, Value


@dataclass(frozen=True)
class Rows:
    """What the language graph says about the rows asked for."""

    logits: npt.NDArray[np.float32]  # (R, V)
    hidden: Array  # (R, H), after the final norm


class Context:
    """A sequence being read: positions so far and their keys and values.

    Call it with the embeddings of the next tokens; the cache keeps everything before them.
    """

    def __init__(self, engine: Engine, capacity: int, skips: bool = False) -> None:
        """capacity: tokens this context can ever hold; an engine with a cache of fixed length holds that many.

        skips: tokens that no later token may look at are not read, unless they are asked for; the others keep their
        positions.
        """
        self.engine, self.length, self.skips = engine, 0, skips
        self._in_place = engine.file.cache == "in_place"
        self._caches = [tensor for tensor in engine.file.inputs if tensor.name.startswith(CACHE_IN)]
        fixed = engine.memory.most(self._caches[0].name, 2) if self._in_place and self._caches else None
        if fixed is not None and capacity > fixed:
            raise ValueError(f"this engine's cache holds {fixed} tokens, {capacity} are asked for")
        self.capacity, self.grows = fixed or capacity, fixed is None
        self.visible = np.zeros(self.capacity, np.bool_)
        self.places = np.zeros(self.capacity, np.int64)  # positions, as the model counts them
        self.forwards = 0
        self._past: dict[str, Value] = {}  # made when the first tokens are read

    @property
    def position(self) -> int:
        """Of the next token."""
        return int(self.places[self.length - 1]) + 1 if self.length else 0

    def _begin(self) -> None:
        for tensor in self._caches:
            _, heads, _, width = tensor.shape
            shape = (1, int(heads), self.capacity if self._in_place else 0, int(width))
            self._past[tensor.name] = self.engine.memory.zeros(tensor.name, shape)

    def __call__(
        self,
        embeddings: Array | Joined,
        rows: Sequence[int],
        visible: npt.NDArray[np.bool_] | None = None,
        sees: npt.NDArray[np.bool_] | None = None,
    ) -> Rows:
        """Append embeddings (S, H); rows: indices among the S that get logits and hidden states.

        visible: see `read`. sees (N, N): the last N are a tree (`pixelrt.draft_tree`), which of them each looks at.
        Where the engine takes fewer than S at once they are read in pieces, if no tree is among them.
        """
        wanted, places = np.asarray(rows, np.int64), self.position + np.arange(len(embeddings))
        if sees is not None:  # as many places behind the token before the tree as there are tokens on the way
            places[-len(sees) :] = places[-len(sees)] - 1 + sees.sum(axis=1)
        if self.skips and visible is not None and not visible.all():
            kept = visible.copy()
            kept[wanted] = True
            index = np.flatnonzero(kept)
            embeddings = embeddings.taken(index) if isinstance(embeddings, Joined) else embeddings[index]
            wanted, places, visible = np.cumsum(kept)[wanted] - 1, places[index], visible[index]
        count = len(embeddings)
        most = self.engine.memory.most("inputs_embeds", 1) or count
        looks = None
        if sees is not None:
            if count > most:
                raise ValueError(f"this engine reads {most} tokens at once; with a tree they are {count}")
            looks = np.ones((count, self.length + count), np.bool_)
            looks[-len(sees) :, -len(sees) :] = sees
        if count <= most:
            outputs = self.read(embeddings, {"logit_rows": wanted}, visible, places, looks)
            return Rows(np.asarray(outputs["logits"])[0], np.asarray(outputs["hidden"])[0])
        logits, hidden = [], []
        for start in range(0, count, most):
            stop = min(start + most, count)
            here = (wanted >= start) & (wanted < stop)
            # Nothing is asked of a piece that only fills the cache; its last row is, for a graph needs one.
            asked = wanted[here] - start if here.any() else np.array([stop - start - 1], np.int64)
            part = None if visible is None else visible[start:stop]
            outputs = self.read(
                _rows(embeddings, start, stop), {"logit_rows": asked}, part, places[start:stop]
            )
            if here.any():
                logits.append(np.asarray(outputs["logits"])[0])
                hidden.append(np.asarray(outputs["hidden"])[0])
        order = np.argsort(np.argsort(wanted // most, kind="stable"), kind="stable")
        return Rows(np.concatenate(logits)[order], np.concatenate(hidden)[order])

    def read(
        self,
        embeddings: Array | Joined,
        asked: Mapping[str, Array],
        visible: npt.NDArray[np.bool_] | None = None,
        places: npt.NDArray[np.int64] | None = None,
        looks: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, Value]:
        """Append embeddings (S, H); gives the graph's outputs for what is asked of these S rows.

        asked: the inputs that only this model's graph has. visible (S,): tokens that no later token may look at
        are False (nor does such a token itself). places (S,): positions, where they do not simply go on. looks
        (S, length + S): where a token must not look at all that is before it, False.
        """
        count, start = len(embeddings), self.length
        end = start + count
        if end > self.capacity:
            raise ValueError(f"context of {self.capacity} tokens cannot take {end}")
        if not self._past:
            self._begin()
        self.visible[start:end] = True if visible is None else visible
        self.places[start:end] = self.position + np.arange(count) if places is None else places
        # Rounded up, so that an engine sees few different lengths; what is beyond the end is masked.
        step = self.engine.memory.step if self._in_place else 1
        seen = min(-(-end // step) * step, self.capacity)
        mask = np.zeros((count, seen), np.bool_)
        mask[:, :end] = self.visible[:end]
        mask[:, start:end] &= np.tri(count, dtype=np.bool_)
        if looks is not None:
            mask[:, :end] &= looks
        inputs: dict[str, Value | Joined] = {
            "inputs_embeds": embeddings if isinstance(embeddings, Joined) else embeddings[None],
            "position_ids": self.places[None, start:end],
            "attn_mask": mask[None, None],
            **asked,
            **self._past,
        }
        into: dict[str, Value] = {}
        if self._in_place:
            inputs["write_indices"] = np.array([start], np.int64)
            into = {_present(name): buffer for name, buffer in self._past.items()}
        outputs = self.engine(inputs, into)
        if not self._in_place:
            self._past = {name: outputs[_present(name)] for name in self._past}
        self.length = end
        self.forwards += 1
        return outputs

    def room(self, wanted: int, count: int, rows: int) -> int:
        """How many of `wanted` further tokens the engine reads together with `count` others, all at once, when each
        of them gets logits, beside `rows` of the others."""
        past = {} if self._in_place else {(tensor.name, 2): self.length for tensor in self._caches}

        def taken(more: int) -> bool:
            sizes = {("inputs_embeds", 1): count + more, ("logit_rows", 0): rows + more, **past}
            return self.engine.memory.takes(sizes)

        return next((more for more in range(wanted, 0, -1) if taken(more)), 0)

    def can_append(self, count: int, after: int) -> bool:
        """Whether the engine reads `count` tokens behind `after` others at once. A growing cache may be in the way:
        TensorRT wants the ends of a profile to add up, so one for long prompts begins with an empty cache."""
        if self._in_place:
            return True
        caches = {(tensor.name, 2): after for tensor in self._caches}
        return self.engine.memory.takes({("inputs_embeds", 1): count, **caches})

    @property
    def on_host(self) -> bool:
        """Whether its cache is arrays that another context's can be copied to."""
        if not self._past:
            self._begin()
        return all(isinstance(past, np.ndarray) for past in self._past.values())

    def begin_as(self, other: Context) -> None:
        """Hold what `other` has read, in place of what this one has; both caches are `on_host`."""
        if not self._past:
            self._begin()
        self.length = other.length
        self.visible[: self.length] = other.visible[: self.length]
        self.places[: self.length] = other.places[: self.length]
        for name, past in other._past.items():
            if self._in_place:
                np.asarray(self._past[name])[:, :, : self.length] = np.asarray(past)[:, :, : self.length]
            else:  # nobody writes to it
                self._past[name] = past

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(math.prod(past.shape) * past.dtype.itemsize for past in self._past.values())

    def rewind(self, length: int, capacity: int | None = None) -> None:
        """Forget all but the first `length` tokens. capacity: tokens to have room for from now on, at least."""
        if not 0 <= length <= self.length:
            raise ValueError(f"context of {self.length} tokens cannot go back to {length}")
        more = max(0, (capacity or 0) - self.capacity)
        if more and not self.grows:
            raise ValueError(f"this engine's cache holds {self.capacity} tokens, {capacity} are asked for")
        self.length, self.capacity = length, self.capacity + more
        self.visible, self.places = np.pad(self.visible, (0, more)), np.pad(self.places, (0, more))
        for name, cache in self._past.items():
            if not self._in_place:
                self._past[name] = cache[:, :, :length]
            elif more:
                rows, heads, _, width = cache.shape
                grown = self.engine.memory.zeros(name, (rows, heads, self.capacity, width))
                np.asarray(grown)[:, :, :length] = np.asarray(cache)[:, :, :length]
                self._past[name] = grown

    def trim(self) -> None:
        """Give back the memory behind what was read, where a cache on the host can grow again."""
        if not self.grows:
            return
        self.capacity = self.length
        self.visible, self.places = self.visible[: self.length].copy(), self.places[: self.length].copy()
        for name, cache in self._past.items():
            if isinstance(cache, np.ndarray):
                self._past[name] = cache[:, :, : self.length].copy()


def positions(engine: Engine, most: int) -> int:
    """Tokens that a context of this engine can hold, `most` where the engine sets no limit."""
    memory, file = engine.memory, engine.file
    caches = [tensor.name for tensor in file.inputs if tensor.name.startswith(CACHE_IN)]
    limits = [memory.most("attn_mask", 3)]
    if file.cache == "in_place" and caches:
        limits.append(memory.most(caches[0], 2))
    return min([most, *(limit for limit in limits if limit is not None)])


def _rows(embeddings: Array | Joined, start: int, stop: int) -> Array | Joined:
    return embeddings.rows(start, stop) if isinstance(embeddings, Joined) else embeddings[start:stop]


def _present(past: str) -> str:
    return CACHE_OUT + past.removeprefix(CACHE_IN)
