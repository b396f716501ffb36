"""Weight files and their index: what is torn, doubled, elsewhere or not what it says is refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pixelrt_export.checkpoint import Checkpoint
from safetensors.numpy import save_file
from toy_checkpoint import TOY, edit_index, message, shard, toy_checkpoint


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_checkpoint(tmp_path / "toy")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_index_and_shards_must_agree(suffix: str, toy: Path) -> None:
    index = shard(toy, suffix)
    read = Checkpoint.open(toy)
    for key, value in TOY.items():
        np.testing.assert_array_equal(read.tensor(key), value)
    second = json.loads(index.read_text())["weight_map"]["c"]

    edit_index(index, a=second)
    assert f"places a in {second}, but it is in" in message(toy)
    edit_index(index, a=second.replace("2-of", "1-of"), d=second)
    assert "places d in" in message(toy) and "but it is not there" in message(toy)
    edit_index(index, d="pytorch_model-3.bin")
    assert "lacks pytorch_model-3.bin" in message(toy)
    index.write_text('{"weight_map": [1]}')
    assert "has no weight_map" in message(toy)
    index.write_text('{"weight_map": {"a": "config.json"}}')
    assert "no .safetensors or .bin file" in message(toy)


def test_a_tensor_in_two_shards_is_refused(toy: Path) -> None:
    index = shard(toy)
    save_file({"b": TOY["b"], "c": TOY["c"]}, toy / "model-00002-of-00002.safetensors")
    assert index.exists() and "holds b twice" in message(toy)


def test_nothing_outside_the_folder_is_read(toy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    save_file({"a": TOY["a"]}, outside)
    index = shard(toy)
    for name in ("../outside.safetensors", str(outside)):
        edit_index(index, a=name)
        assert "names a file outside itself" in message(toy)
    edit_index(index, a="link.safetensors")
    (toy / "link.safetensors").symlink_to(outside)
    assert "names a file outside itself" in message(toy)
    (toy / "config.json").unlink()
    (toy / "config.json").symlink_to("/etc/hostname")
    assert "names a file outside itself" in message(toy)


def test_a_hub_cache_may_link_to_its_own_blobs(toy: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot = tmp_path / "models--x--y" / "snapshots" / "0123abc" / "hf_model"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (blobs / name[:3]).write_bytes((toy / name).read_bytes())
        (snapshot / name).symlink_to(os.path.relpath(blobs / name[:3], snapshot))
    np.testing.assert_array_equal(Checkpoint.open(snapshot).tensor("a"), TOY["a"])


def test_truncated_and_corrupt_safetensors(toy: Path) -> None:
    path = toy / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for cut, says in ((0, "no whole"), (5, "no whole"), (40, "no whole"), (len(whole) - 1, "truncated")):
        path.write_bytes(whole[:cut])
        assert says in message(toy), cut
    path.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    assert "no whole safetensors file" in message(toy)
    path.write_bytes(whole.replace(b'{"', b'!"', 1))
    assert "corrupt safetensors header" in message(toy)
    path.write_bytes(b"version https://git-lfs spec v1\noid sha256:0\n")
    assert "Git LFS pointer" in message(toy)

    def with_header(**changes: object) -> None:
        header = json.loads(whole[8 : 8 + length])
        header["a"] |= changes
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])

    start, stop = json.loads(whole[8 : 8 + length])["a"]["data_offsets"]
    for changes in (
        {"shape": [3, 3]},
        {"shape": [-2, -3]},
        {"shape": "23"},
        {"data_offsets": [stop, start]},
        {"data_offsets": [start - 8, stop - 8]},
        {"data_offsets": None},
        {"dtype": ["F32"]},
    ):
        with_header(**changes)
        assert "corrupt safetensors header" in message(toy), changes
    with_header(data_offsets=[1000, 1024])
    assert "is truncated" in message(toy)
    with_header(dtype="F4")
    assert "stores a tensor as F4" in message(toy)
