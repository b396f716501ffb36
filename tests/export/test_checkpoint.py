"""Reading checkpoint folders: every layout gives the same tensors, every fault one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from pixelrt.errors import InputError
from pixelrt_export.checkpoint import Checkpoint, DeadTensor
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.pixellm_tensors import DEAD_TENSORS, llama_tensors, pixellm_tensors
from pixelrt_export.vision_tower import (
    DEAD_VISION_TENSORS,
    find_vision_tower,
    open_vision_tower,
    vision_tensors,
)
from safetensors.numpy import load_file, save_file

CONFIG = {"model_type": "toy"}
TOY = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, np.float16),
    "c": np.array(7, np.int64),
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """One small safetensors checkpoint."""
    folder = tmp_path / "toy"
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
    assert read.sha256()["config.json"] == hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()


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


def test_golden_checkpoint_is_accounted_for(golden_checkpoint_a: Path) -> None:
    read = Checkpoint.open(golden_checkpoint_a)
    tower = open_vision_tower(find_vision_tower(golden_checkpoint_a, read.config))
    config = PixelLMConfig.from_configs(read.config, tower.config)
    tolerated = read.account(pixellm_tensors(config, read.shapes()), DEAD_TENSORS)
    assert len(tolerated) == 39 and all("iou_token" not in key for key in tolerated)
    tolerated = tower.account(vision_tensors(config), DEAD_VISION_TENSORS)
    assert {key.split(".")[3] for key in tolerated if "encoder" in key} == {"11"}  # the last of 12 layers


def test_live_state_dict_of_the_original_is_accounted_for(
    golden_pixellm: Path, golden_checkpoint_a: Path
) -> None:
    """Also the keys that the release dropped: the vision tower, rotary buffers, position ids."""
    read = Checkpoint.open(golden_checkpoint_a)
    tower = open_vision_tower(find_vision_tower(golden_checkpoint_a, read.config))
    config = PixelLMConfig.from_configs(read.config, tower.config)
    lines = (golden_pixellm / "state_dict_keys.txt").read_text().splitlines()
    shapes = {key: tuple(json.loads(shape)) for key, shape, _ in (line.split("\t") for line in lines)}
    expected = pixellm_tensors(config, shapes)
    assert {key: shapes[key] for key in expected} == expected
    rest = shapes.keys() - expected.keys()
    assert all(any(dead.matches(key, shapes[key]) for dead in DEAD_TENSORS) for key in rest)
    assert llama_tensors(config.language).items() <= expected.items()


@pytest.mark.parametrize("saved_as", ["CLIPVisionModel, transformers 5", "CLIPModel"])
def test_every_form_of_clip_is_read(saved_as: str, golden_checkpoint_a: Path, tmp_path: Path) -> None:
    source = golden_checkpoint_a.parent / "clip"
    tensors, config = (
        load_file(source / "model.safetensors"),
        json.loads((source / "config.json").read_text()),
    )
    if saved_as == "CLIPModel":
        tensors |= {"logit_scale": np.array(2.0), "visual_projection.weight": np.zeros((32, 64), np.float32)}
        tensors |= {"text_model.final_layer_norm.bias": np.zeros(32, np.float32)}
        tensors |= {"vision_model.embeddings.position_ids": np.arange(577)[None]}
        config = {"model_type": "clip", "vision_config": config}
    else:
        tensors = {key.removeprefix("vision_model."): value for key, value in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = open_vision_tower(tmp_path)
    read = PixelLMConfig.from_configs(Checkpoint.open(golden_checkpoint_a).config, tower.config)
    assert len(tower.account(vision_tensors(read), DEAD_VISION_TENSORS)) == (
        22 if saved_as == "CLIPModel" else 18
    )
    key = "vision_model.pre_layrnorm.weight"
    np.testing.assert_array_equal(tower.tensor(key), open_vision_tower(source).tensor(key))


def test_one_error_lists_every_fault(golden_checkpoint_a: Path) -> None:
    read = Checkpoint.open(golden_checkpoint_a)
    expected = dict(read.shapes())
    del expected["lm_head.weight"]
    expected["model.norm.weight"] = (127,)
    expected |= {f"model.extra.{i}": (i,) for i in range(25)}
    with pytest.raises(InputError) as caught:
        read.account(expected)
    text = str(caught.value)
    assert "25 missing:" in text and "model.extra.19 [19]" in text and "… and 5 more" in text
    assert "model.extra.20" not in text
    assert "1 unexpected:\n    lm_head.weight [408, 128]" in text
    assert "1 misshapen:\n    model.norm.weight is [128], wanted [127]" in text


def test_dead_tensors_by_shape_are_counted(toy: Path) -> None:
    """PSALM's stale tensors are known by shape and number only."""
    tensors = {f"stale.{i}.weight": np.zeros((8, 8), np.float32) for i in range(4)}
    save_file(TOY | tensors, toy / "model.safetensors")
    read = Checkpoint.open(toy)
    expected = {key: value.shape for key, value in TOY.items()}
    dead = [DeadTensor.shaped((8, 8), 3, "an older sampler's"), DeadTensor.named("other.*", "never")]
    with pytest.raises(InputError, match=r"1 unexpected:\n    stale\.3\.weight"):
        read.account(expected, dead)
    dead[0] = DeadTensor.shaped((8, 8), 4, "an older sampler's")
    assert read.account(expected, dead) == dict.fromkeys(tensors, "an older sampler's")


def test_a_dead_pattern_never_excuses_a_misshapen_tensor(toy: Path) -> None:
    with pytest.raises(InputError, match="1 misshapen"):
        Checkpoint.open(toy).account({"a": (3, 2), "b": (4,), "c": ()}, [DeadTensor.named("*", "anything")])


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
