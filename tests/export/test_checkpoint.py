"""Reading checkpoint folders: every layout gives the same tensors, every fault one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pixelrt.cli import main
from pixelrt.errors import InputError
from pixelrt_export.checkpoint import JSON_LIMIT, Checkpoint
from safetensors.numpy import load_file, save_file
from toy_checkpoint import CONFIG, message, run_python, toy_checkpoint


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_checkpoint(tmp_path / "toy")


@pytest.mark.parametrize("layout", ["safetensors", "sharded-safetensors", "bin", "sharded-bin"])
def test_layouts_hold_the_same_tensors(
    layout: str, tmp_path: Path, golden_pixellm: Path, golden_checkpoint_a: Path
) -> None:
    write = runpy.run_path(str(golden_pixellm / "make_checkpoint.py"))["write_checkpoint"]
    read = Checkpoint.open(write(tmp_path, "A", "released", layout))
    reference = load_file(golden_checkpoint_a / "model.safetensors")
    assert read.shapes().keys() - reference.keys() == {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)
    }
    for key, wanted in reference.items():
        got = read.tensor(key)
        pixel = any(name in key for name in ("mask_decoder", "prompt_encoder", "text_hidden", "neck"))
        assert read.dtype(key) == got.dtype == (np.float32 if pixel else ml_dtypes.bfloat16), key
        assert read.shapes()[key] == got.shape == wanted.shape
        np.testing.assert_array_equal(got, wanted.astype(got.dtype), err_msg=key)
        assert not got.flags.writeable
    assert len(read.files()) == {"safetensors": 2, "bin": 2}.get(layout, 5)


def test_files_and_hashes_are_the_provenance(toy: Path) -> None:
    read = Checkpoint.open(toy)
    assert read.config == CONFIG
    assert read.files() == {
        name: (toy / name).stat().st_size for name in ("config.json", "model.safetensors")
    }
    assert read.sha256("config.json") == hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()


def test_scalars_empty_and_unaligned_tensors(tmp_path: Path) -> None:
    tensors = {"byte": np.ones(3, np.int8), "empty": np.zeros((0, 4), np.float32), "odd": np.arange(5.0)}
    header = {
        "byte": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [3, 3]},
        "odd": {"dtype": "F64", "shape": [5], "data_offsets": [3, 43]},
    }
    text = json.dumps(header).encode()
    data = b"".join(value.tobytes() for value in tensors.values())
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    read = Checkpoint.open(tmp_path, config_required=False)
    for key, value in tensors.items():
        np.testing.assert_array_equal(read.tensor(key), value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_one_tensor_at_a_time(name: str, tmp_path: Path) -> None:
    """Copying 96 MiB tensor by tensor (12 MiB each) takes the anonymous memory of two of them at most."""
    folder, size = tmp_path / "big", 12 << 20
    folder.mkdir()
    tensors = {f"w{i}": np.full(size // 4, i, np.float32) for i in range(8)}
    if name.endswith("bin"):
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / name)
    else:
        save_file(tensors, folder / name)
    script = f"""
    import torch
    from pixelrt_export.checkpoint import Checkpoint
    def anonymous():
        lines = open("/proc/self/status").read().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmSwap"))) << 10
    before, peak = anonymous(), 0
    read = Checkpoint.open({str(folder)!r}, config_required=False)
    for key in read.keys():
        tensor = read.tensor(key).copy()
        assert tensor[-1] == int(key[1:])
        peak = max(peak, anonymous() - before)
        del tensor
    print(peak)
    """
    assert int(run_python(script)) < 2.5 * size


def test_folders_that_are_no_checkpoint(toy: Path, tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "nowhere")
    assert "is a file" in message(toy / "config.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no config.json" in message(empty)
    assert "lacks model.safetensors" in message(empty, config_required=False)
    assert "holds nothing" in message(empty, config_required=False)
    (empty / "manifest.json").write_text("{}")
    assert "is a bundle already" in message(empty)
    assert f"did you mean {toy}?" in message(tmp_path)


def test_config_that_is_no_json_object(toy: Path) -> None:
    (toy / "config.json").write_text("{")
    assert "is not JSON" in message(toy)
    (toy / "config.json").write_bytes(b"\xff\xfe")
    assert "is not JSON" in message(toy)
    (toy / "config.json").write_text("[]")
    assert "holds a list" in message(toy)


def test_json_files_of_any_size_are_not_read(toy: Path) -> None:
    """A config and an index of 16 MiB and one byte, which take no disk."""
    os.truncate(toy / "config.json", JSON_LIMIT + 1)
    assert "config.json has 16,777,217 bytes, wanted 16,777,216 at most" in message(toy)
    refused = CliRunner().invoke(main, ["export", str(toy), str(toy.parent / "b")])
    assert refused.exit_code == 2 and refused.output.count("\n") == 1
    (toy / "config.json").write_text("{}")
    (toy / "model.safetensors").rename(toy / "model-00001-of-00001.safetensors")
    index = toy / "model.safetensors.index.json"
    index.touch()
    os.truncate(index, JSON_LIMIT + 1)
    assert f"{index.name} has 16,777,217 bytes" in message(toy)


def test_an_absent_tensor_is_an_input_error(toy: Path) -> None:
    with pytest.raises(InputError, match="has no tensor z"):
        Checkpoint.open(toy).tensor("z")


def test_opening_needs_no_torch_for_safetensors(toy: Path) -> None:
    script = f"""
    import sys
    sys.modules["torch"] = None
    from pixelrt_export.checkpoint import Checkpoint
    print(Checkpoint.open({str(toy)!r}).tensor("a").sum())
    """
    assert run_python(script) == "15.0\n"
