"""`load_case(name)`: the tensors of one golden case; README.md lists them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def load_case(name: str) -> dict[str, np.ndarray]:
    """Stored tensors, and those that are the same as in case `panoptic`, which are stored there only."""
    tensors = _stored(name)
    shared = json.loads((HERE / "golden.json").read_text())["cases"][name].get("as_panoptic", [])
    if shared:
        panoptic = _stored("panoptic")
        tensors |= {key: panoptic[key] for key in shared}
    return tensors


def _stored(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"case_{name}.npz") as file:
        return {key: file[key] for key in file.files}
