"""`load`: from a bundle folder to an object that answers questions."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pixelrt.bundle import Bundle
from pixelrt.engine import Array, Backend
from pixelrt.errors import InputError
from pixelrt.masks import Answer

# A family is one module: `open_family(bundle, backend) -> Segmenter`.
FAMILIES = {"pixellm": "pixelrt.families.pixellm"}
BACKENDS = ("auto", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Frame:
    """An image and everything that was computed from it alone; serves any number of questions."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    content: tuple[int, int]  # rows and columns of the network input that the image fills
    tokens: Array  # (T, D) image tokens of the language model
    token_valid: npt.NDArray[np.bool_]  # (T,) False where a token lies in the padding
    features: Mapping[str, Array]  # inputs of the pixel decoder
    bundle: str  # SHA-256 of the manifest of the bundle that encoded it
    timing: Mapping[str, float] = field(default_factory=dict)  # stage -> ms


class Segmenter(Protocol):
    """A loaded bundle."""

    bundle: Bundle
    backend: str

    def encode(self, image: Any) -> Frame:
        """image: path, bytes, file object, PIL image or uint8 array (H, W, 3), (H, W, 4), (H, W)."""
        ...

    def segment(
        self, frame: Any, prompt: str, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Answer:
        """Answer one question about a frame (or about an image, which is then encoded first)."""
        ...


def load(path: str | os.PathLike[str], backend: str = "auto", expect_sha256: str | None = None) -> Segmenter:
    """Load a bundle.

    backend: `auto` or `onnxruntime` (CPU). expect_sha256: refuse the bundle unless its manifest, which holds the
    hash of every file, has this one. Raises InputError.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"A bundle is given by its path, not by a {type(path).__name__}.")
    if expect_sha256 is not None and not isinstance(expect_sha256, str):
        raise InputError(f"expect_sha256 is {expect_sha256!r}. Give 64 hexadecimal digits.")
    if backend not in BACKENDS:
        raise InputError(f"No backend {backend!r}. Choose one of: {', '.join(BACKENDS)}.")
    return open_bundle(Bundle.read(path, expect_sha256=expect_sha256), backend)


def open_bundle(bundle: Bundle, backend: str | Backend = "auto") -> Segmenter:
    """Load a bundle that was read already, on a named backend or on one made by the caller."""
    family = bundle.manifest["family"]
    if family not in FAMILIES:
        raise InputError(
            f"{bundle.path} is of family {family!r}; this pixelrt knows {', '.join(FAMILIES)}. Upgrade pixelrt."
        )
    if isinstance(backend, str):
        from pixelrt.engine_ort import OrtBackend

        backend = OrtBackend(bundle)
    segmenter: Segmenter = importlib.import_module(FAMILIES[family]).open_family(bundle, backend)
    return segmenter
