"""Every tensor of a checkpoint is expected, or known to be dead, or named in one error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
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
from toy_checkpoint import TOY, toy_checkpoint


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_checkpoint(tmp_path / "toy")


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
