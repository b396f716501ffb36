"""Weights saved by torch: read without running what is in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pixelrt_export.checkpoint import Checkpoint
from toy_checkpoint import message


class Payload:
    """What a hostile pickle does: call a function when read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_carries_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    text = message(tmp_path, config_required=False)
    assert "carries code (its pickle asks for posix.system)" in text or "asks for os.system" in text
    assert not (tmp_path / "ran").exists()


def test_torch_files_that_are_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for state in (
        {"model": {"a": torch.ones(2)}},
        [torch.ones(2)],
        {"a": 1},
        {"a": torch.eye(2).to_sparse()},
    ):
        torch.save(state, path)
        assert "is no state dict" in message(tmp_path, config_required=False), state
    torch.save({"a": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    assert "float8_e4m3fn, which pixelrt cannot read" in message(tmp_path, config_required=False)
    torch.save({"a": torch.ones(400)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    assert "is truncated" in message(tmp_path, config_required=False)
    path.write_text("not a pickle at all")
    assert "download it again" in message(tmp_path, config_required=False)
    path.write_bytes(b"")
    assert "download it again" in message(tmp_path, config_required=False)


def test_old_torch_files_without_a_zip_are_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).t()}  # not contiguous
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    read = Checkpoint.open(tmp_path, config_required=False)
    np.testing.assert_array_equal(read.tensor("a"), [[0, 3], [1, 4], [2, 5]])


def test_a_modules_state_dict_is_read(tmp_path: Path) -> None:
    """With torch's version metadata, parameters instead of tensors, and a storage that two share."""
    state = torch.nn.Linear(3, 2).state_dict(keep_vars=True)
    state["view"] = state["weight"][1]
    torch.save(state, tmp_path / "pytorch_model.bin")
    read = Checkpoint.open(tmp_path, config_required=False)
    for key, value in state.items():
        np.testing.assert_array_equal(read.tensor(key), value.detach().numpy())
