"""What is given to a graph of a bundle in tests of a backend: noise of the right shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

RNG = np.random.default_rng(7)


def encoder_inputs(backend: Any, seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {t.name: t.shape for t in backend.bundle.graph("encoder", activations="float32").inputs}
    rng = np.random.default_rng(seed)
    return {
        "pixels": rng.normal(size=(1, *shapes["pixels"][1:])).astype(np.float32),
        "patch_valid": np.ones((1, shapes["patch_valid"][1]), bool),
    }


def width(backend: Any) -> int:
    return int(backend.bundle.manifest["language"]["hidden"])


def rows(backend: Any, count: int) -> np.ndarray:
    return RNG.normal(size=(count, width(backend))).astype(np.float32)
