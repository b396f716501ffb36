"""A checkpoint of three small tensors, and what tests of reading checkpoints share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from pixelrt.errors import InputError
from pixelrt_export.checkpoint import Checkpoint
from safetensors.numpy import save_file

CONFIG = {"model_type": "toy"}
TOY = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, np.float16),
    "c": np.array(7, np.int64),
}


def toy_checkpoint(folder: Path) -> Path:
    """Write it as one safetensors file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(TOY, folder / "model.safetensors")
    return folder


def shard(folder: Path, suffix: str = "safetensors") -> Path:
    """The toy in two shards; returns the index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for i, keys in ((1, "ab"), (2, "c")):
        part = {key: TOY[key] for key in keys}
        path = folder / f"{stem}-0000{i}-of-00002.{suffix}"
        if suffix == "bin":
            torch.save({key: torch.from_numpy(value.copy()) for key, value in part.items()}, path)
        else:
            save_file(part, path)
    (folder / "model.safetensors").unlink()
    weight_map = {key: f"{stem}-0000{1 if key in 'ab' else 2}-of-00002.{suffix}" for key in TOY}
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def edit_index(index: Path, **changes: str) -> None:
    value = json.loads(index.read_text())
    value["weight_map"] |= changes
    index.write_text(json.dumps(value))


def run_python(script: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def message(folder: Path, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder, **options)
    return str(caught.value)
