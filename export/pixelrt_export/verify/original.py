"""What a family tells of its original, so that a bundle can be compared with it at every boundary.

An `Original` computes in torch, in fp32, from the checkpoint, a layer at a time. Its results carry the names that the
bundle's graphs give the same tensors; nothing else is shared with the exporter. Letters: S tokens, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pixelrt.segmenter import Segmenter

from pixelrt_export.checkpoint import Checkpoint

Arrays = Mapping[str, np.ndarray]
# place -> what the layer that ends there makes of the states before it
Steps = Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]


class Question(Protocol):
    """`quantize.records.Record`, or a recorded one."""

    @property
    def image(self) -> Any:
        """Anything that `open_image` takes."""
        ...

    @property
    def prompt(self) -> str: ...
    @property
    def query(self) -> Any:
        """Of `pixelrt.queries`, for an original that is asked such; it does not look at the prompt."""
        ...


@dataclass(frozen=True)
class Said:
    """A bundle's answer through the runtime. words: token ids, or whatever else it decided by itself."""

    words: list[int]
    masks: list[np.ndarray]  # (H, W) bool each


@dataclass(frozen=True)
class Pass:
    """One call of the language graph: which of the S rows it reads, and what is asked about them."""

    rows: slice
    asked: Arrays


@dataclass(frozen=True)
class Reading:
    """What the language model reads for one question and the bundle's own answer to it.

    whole: all in one call. steps: the same in several, through the cache.
    """

    states: np.ndarray  # (S, H)
    visible: np.ndarray  # (S,) bool
    whole: Pass
    steps: tuple[Pass, ...]


@dataclass
class Encoded:
    """outputs: of the encoder, by name. kept: what the original needs again when it draws masks."""

    outputs: dict[str, np.ndarray]
    kept: Any = None


@dataclass(frozen=True)
class Otherwise:
    """A word that the original would not have said after those before it."""

    number: int  # from 1
    said: int
    instead: int
    ahead: float  # the original's logit of `instead` minus that of the word


@dataclass(frozen=True)
class Judged:
    """One question: whether the original would have answered the same, and IoU of each mask with its own."""

    same: bool
    ious: list[float] = field(default_factory=list)
    others: list[Otherwise] = field(default_factory=list)


class Original(Protocol):
    family: str  # as in a manifest
    typed: bool  # it is asked typed queries (`Record.query`), not words
    checkpoint: Checkpoint
    vision_tower: Path | None

    def picture(self, record: Question) -> dict[str, np.ndarray]:
        """Inputs of the encoder, B = 1."""
        ...

    def vision(self, inputs: Arrays) -> tuple[str, np.ndarray, Steps]:
        """The tower: name of its first place, the states there, and its layers."""
        ...

    def release(self) -> None:
        """Give back the memory of what can be read from the checkpoint again: the tower and the pixel decoder."""
        ...

    def encoded(self, inputs: Arrays, places: Arrays) -> Encoded:
        """What the encoder gives, from the tower's states at each place."""
        ...

    def listen(self, segmenter: Segmenter, record: Question) -> Said: ...

    def ids(self, record: Question) -> list[int]:
        """Of the prompt, as `Segmenter.check` gives them."""
        ...

    def read(self, record: Question, said: Said, image_tokens: np.ndarray) -> Reading:
        """image_tokens (T, H): whose they are decides the caller."""
        ...

    def layers(self) -> Iterator[tuple[str, Callable[[np.ndarray, Reading], np.ndarray]]]:
        """The language model's, one in memory at a time: states (S, H) -> states (S, H)."""
        ...

    def head(self, states: np.ndarray, reading: Reading) -> dict[str, np.ndarray]:
        """Outputs of the language graph for what `reading.whole` asks, from the last layer's states."""
        ...

    def idle(self, batch: int, count: int) -> dict[str, np.ndarray]:
        """Inputs that only this language graph has, asking for next to nothing of (batch, count) tokens."""
        ...

    def targets(self, reading: Reading, said: Said, head: Arrays) -> dict[str, np.ndarray] | None:
        """Inputs of the pixel decoder but for the encoder's; None where nothing is to be drawn."""
        ...

    def decoded(self, targets: Arrays, encoded: Encoded) -> dict[str, np.ndarray]:
        """Outputs of the pixel decoder."""
        ...

    def masks(self, record: Question, said: Said, decoded: Arrays) -> list[np.ndarray]:
        """Decoder outputs to masks of the picture's size, (H, W) bool, in the order of `said.masks`."""
        ...

    def agrees(
        self, record: Question, said: Said, head: Arrays, decoded: Arrays | None, drawn: Arrays | None
    ) -> bool:
        """Whether the original would have answered the same. decoded, drawn: decoder outputs, its own, the bundle's."""
        ...

    def otherwise(self, said: Said, head: Arrays) -> list[Otherwise]:
        """Words that it would not have said; none for families that say none."""
        ...


def wide(array: np.ndarray) -> np.ndarray:
    """In float32, a copy that torch may own."""
    return np.array(array, np.float32)
