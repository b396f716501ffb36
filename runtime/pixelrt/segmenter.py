"""`load`: from a bundle folder to an object that answers questions."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pixelrt.backends import check_name, open_backend
from pixelrt.bundle import Bundle
from pixelrt.engine import Array, Backend, Value
from pixelrt.errors import InputError
from pixelrt.language import Context
from pixelrt.masks import Mask
from pixelrt.queries import Query, Regions

if TYPE_CHECKING:  # Pillow stays out of `import pixelrt`
    from pixelrt.conversation import Conversation
    from pixelrt.results import Tracked

# A family is one module: `open_family(bundle, backend) -> Segmenter`.
FAMILIES = {"pixellm": "pixelrt.families.pixellm", "psalm": "pixelrt.families.psalm"}


@dataclass(frozen=True, eq=False)
class Frame:
    """An image and everything that was computed from it alone; serves any number of questions."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    content: tuple[int, int]  # rows and columns of the network input that the image fills
    tokens: Value  # (T, D) image tokens of the language model
    token_valid: npt.NDArray[np.bool_]  # (T,) False where a token lies in the padding
    features: Mapping[str, Value]  # inputs of the pixel decoder
    bundle: str  # SHA-256 of the manifest of the bundle that encoded it
    timing: Mapping[str, float] = field(default_factory=dict)  # stage -> ms
    context: Context | None = None  # what the language model has read of it, where prompts share that

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays. They grow where a question adds to `context`."""
        arrays = [self.image, self.tokens, *self.features.values()]
        held = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
        return held + (self.context.nbytes if self.context is not None else 0)


class Result(Protocol):
    """What every answer has; `pixelrt.masks.Answer` and the types of `pixelrt.results`."""

    @property
    def text(self) -> str:
        """The model's words, empty where it has none."""
        ...

    @property
    def masks(self) -> Sequence[Mask]: ...
    @property
    def timing(self) -> Mapping[str, float]: ...
    def to_json(self) -> dict[str, Any]: ...
    def files(self, image: str) -> dict[str, bytes]:
        """Files beside the masks in formats of their own. image: name of the picture's file."""
        ...


class Segmenter(Protocol):
    """A loaded bundle."""

    bundle: Bundle
    backend: str  # what runs it: `onnxruntime-cpu`, or with versions and GPU

    def check(
        self,
        prompt: str | Query,
        image: Any = None,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> list[int]:
        """Refuse a question before a picture is encoded for it; image: refuse places that lie outside it too.

        Gives the ids of the prompt: -200 where the picture goes, -203 where a region does, as the original codes.
        Raises InputError, as `segment` would.
        """
        ...

    def encode(self, image: Any) -> Frame:
        """image: path, bytes, file object, PIL image or uint8 array (H, W, 3), (H, W, 4), (H, W)."""
        ...

    def encode_batch(self, images: Sequence[Any]) -> list[Frame]:
        """`encode` of each, several in one run of the encoder."""
        ...

    def segment(
        self, frame: Any, prompt: str | Query, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Result:
        """Answer one question about a frame (or about an image, which is then encoded first).

        prompt: words, or a query of `pixelrt.queries`. max_new_tokens, seg_runs: for families that write words.
        """
        ...

    def segment_batch(
        self, images: Any, prompts: Any, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Sequence[Result]:
        """The answers that `segment` gives to each question, made together.

        images: one image or frame for all prompts, or a list; prompts: one, or a list; of two lists of several the
        first is asked about the first, and so on. What several answers have in common is shared out in their timing,
        so that the times of all together are the time that passed. Bad input raises InputError, which names the one
        that is bad, before anything runs.
        """
        ...

    def stream(
        self, frame: Any, prompt: str | Query, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Iterator[str | Mask | Result]:
        """The same answer as it comes: pieces of its text, each mask as soon as it exists, last the whole result.

        The pieces' concatenation is the result's `text`, the masks are its `masks`. A family that draws all masks at
        once gives them together. Bad input raises InputError here, not at the first piece.
        """
        ...

    def chat(self, frame: Any) -> Conversation:
        """Several questions about a frame, each knowing what was said before it. Raises InputError: a family that
        writes no words."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """A segmenter that follows objects through a video."""

    def track(self, frames: Iterable[Any], regions: Regions, memory: bool = True) -> Iterator[Tracked]:
        """One result a frame of the objects marked by `regions` on the first. memory: look for them as they were
        in the frame before where that is safe, not as they were marked."""
        ...


@runtime_checkable
class Drawer(Protocol):
    """A segmenter whose answers keep what their masks were drawn from (`pixelrt.masks.Answer.targets`)."""

    def draw(self, frame: Frame, targets: Array, timing: dict[str, float]) -> list[Mask]:
        """The same targets in another frame, without labels. timing: the stages are added to it."""
        ...


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    expect_sha256: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Segmenter:
    """Load a bundle.

    backend: `auto` takes TensorRT, then ONNX Runtime on the GPU, then on the CPU, and `Segmenter.backend` says which;
    or one of `pixelrt.backends.BACKENDS`. expect_sha256: refuse the bundle unless its manifest, which holds the
    hash of every file, has this one. progress: called with the bytes that were
    checked, and how many there are. Raises InputError.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"A bundle is given by its path, not by a {type(path).__name__}.")
    if expect_sha256 is not None and not isinstance(expect_sha256, str):
        raise InputError(f"expect_sha256 is {expect_sha256!r}. Give 64 hexadecimal digits.")
    check_name(backend)
    return open_bundle(Bundle.read(path, expect_sha256=expect_sha256, progress=progress), backend)


def open_bundle(bundle: Bundle, backend: str | Backend = "auto") -> Segmenter:
    """Load a bundle that was read already, on a named backend or on one made by the caller."""
    family = bundle.manifest["family"]
    if family not in FAMILIES:
        raise InputError(
            f"{bundle.path} is of family {family!r}; this pixelrt knows {', '.join(FAMILIES)}. Upgrade pixelrt."
        )
    opened = open_backend(bundle, backend) if isinstance(backend, str) else backend
    segmenter: Segmenter = importlib.import_module(FAMILIES[family]).open_family(bundle, opened)
    return segmenter


def record(
    segmenter: Segmenter,
    image: Any,
    prompt: str | Query,
    file: str | os.PathLike[str],
    max_new_tokens: int = 512,
    seg_runs: str = "complete",
) -> Result:
    """Answer one question, and write to `file` all that went through the bundle: see `pixelrt.recording`.

    `pixelrt verify BUNDLE CHECKPOINT --replay FILE` then says where the answer goes wrong. Raises InputError.
    """
    from pixelrt.recording import recorded

    return recorded(segmenter, image, prompt, Path(file), max_new_tokens, seg_runs)[1]


def frame_of(segmenter: Segmenter, image: Any) -> Frame:
    """The frame itself where `image` is one that this segmenter's bundle encoded; else the encoded image."""
    if not isinstance(image, Frame):
        return segmenter.encode(image)
    if image.bundle != segmenter.bundle.sha256:
        raise InputError("This frame was encoded by another bundle. Encode the picture with this one.")
    return image


@contextmanager
def stage(timing: dict[str, float], name: str) -> Iterator[None]:
    """Wall time of a stage in ms, beside what it took before."""
    start = time.perf_counter()
    yield
    timing[name] = timing.get(name, 0.0) + (time.perf_counter() - start) * 1e3
