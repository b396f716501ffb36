"""config.json of a checkpoint and of its CLIP -> sizes, or one sentence that says what is not supported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pixelrt.errors import InputError
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.model_config import language_config, vision_config
from pixelrt_export.pixellm_tensors import llama_tensors, pixellm_tensors
from pixelrt_export.vision_tower import find_vision_tower, vision_tensors

Json = dict[str, Any]

# The language half of the released 7B, and what its code forces.
RELEASED_7B = {
    "architectures": ["PixelLMForCausalLM"],
    "model_type": "llava",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_feature_scale_num": 2,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "mm_hidden_size": 1024,
    "mm_projector_hidden_dim": 2,
    "mm_projector_out_dim": 1,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": True,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "out_dim": 256,
    "pad_train_clip_images": True,
    "resize_vision_tower": True,
    "resize_vision_tower_size": 448,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "separate_mm_projector": True,
    "tie_word_embeddings": False,
    "vocab_size": 32009,
}
RELEASED_13B = RELEASED_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_position_embeddings": 4096,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32008,
}
CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}


def parameters(shapes: dict[str, tuple[int, ...]], *names: str) -> int:
    total = 0
    for key, shape in shapes.items():
        if any(key.startswith(name) for name in names):
            size = 1
            for n in shape:
                size *= n
            total += size
    return total


def test_released_7b() -> None:
    config = PixelLMConfig.from_configs(RELEASED_7B, CLIP_L)
    language, vision = config.language, config.vision
    assert (language.hidden, language.layers, language.heads, language.kv_heads) == (4096, 32, 32, 32)
    assert (language.head_dim, language.rotary_dims, language.rope_theta) == (128, 128, 10000.0)
    assert (language.norm_eps, language.max_positions, language.activation) == (1e-6, 2048, "silu")
    assert (vision.activation, vision.norm_eps, vision.native_positions) == ("quick_gelu", 1e-5, 577)
    assert (config.grid, config.token_grid, config.image_tokens) == (32, 16, 256)
    assert (config.deep_layers, config.shallow_layers) == (23, 14)
    assert (config.projector_hidden, config.decoder_dim, config.decoder_heads) == (8192, 256, 8)
    assert (config.tokens_per_scale, config.scales, config.seg_tokens) == (3, 2, 6)


@pytest.mark.parametrize(
    ("released", "llama", "projector", "text_fcs", "neck"),
    [
        (RELEASED_7B, 6_738_489_344, 41_955_328, 17_830_144, 1_639_424),
        (RELEASED_13B, 13_015_946_240, 62_929_920, 27_530_496, 1_901_568),
    ],
)
def test_parameter_counts_are_those_of_the_release(
    released: Json, llama: int, projector: int, text_fcs: int, neck: int
) -> None:
    config = PixelLMConfig.from_configs(released, CLIP_L)
    shapes = pixellm_tensors(config, {})
    assert parameters(llama_tensors(config.language), "") == llama
    assert parameters(shapes, "model.mm_projector") == projector
    assert parameters(shapes, "model.out_mm_projector") == projector
    assert parameters(shapes, "model.text_hidden_fcs") == text_fcs
    assert parameters(shapes, "model.image_feature_neck") == neck
    assert parameters(shapes, "model.mask_decoder.transformer.0") == 3_291_264
    resized = (1025 - 577) * 1024  # the specification counts the position table after its resize
    assert round(parameters(vision_tensors(config), "") + resized, -5) == 291_400_000


def test_golden_config(golden_pixellm: Path) -> None:
    golden = json.loads((golden_pixellm / "golden.json").read_text())
    config = PixelLMConfig.from_configs(golden["llm"], golden["clip"])  # its architectures is null
    assert (config.grid, config.deep_layers, config.shallow_layers) == (32, 11, 2)
    assert config.vision.layers == 12 and config.language.head_dim == 32


def test_sizes_that_the_original_hard_codes_come_from_the_config() -> None:
    config = PixelLMConfig.from_configs(
        RELEASED_7B
        | {"resize_vision_tower_size": 140, "mm_vision_shallow_layer": 3, "out_dim": 96, "seg_token_num": 2},
        CLIP_L,
    )
    assert (config.grid, config.image_tokens, config.shallow_layers) == (10, 25, 3)
    assert (config.decoder_dim, config.tokens_per_scale, config.seg_tokens) == (96, 2, 4)


def test_keys_that_old_configs_leave_out() -> None:
    old = {
        key: value for key, value in RELEASED_7B.items() if key not in ("num_key_value_heads", "rms_norm_eps")
    }
    language = language_config(old | {"max_position_embeddings": None}, "llama")
    assert (language.kv_heads, language.norm_eps, language.max_positions) == (32, 1e-6, 2048)
    assert vision_config({"model_type": "clip_vision_model"}).hidden == 768


def test_grouped_heads() -> None:
    language = language_config(RELEASED_7B | {"num_key_value_heads": 8, "rope_theta": 1e6}, "llama")
    assert (language.kv_heads, language.rope_theta) == (8, 1e6)
    assert llama_tensors(language)["model.layers.0.self_attn.k_proj.weight"] == (1024, 4096)


def test_a_phi_is_read_the_same_way() -> None:
    phi = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "vocab_size": 50297,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
    }
    language = language_config(phi, "phi")
    assert (language.head_dim, language.rotary_dims, language.kv_heads) == (64, 32, 32)
    assert (language.activation, language.norm_eps, language.kind) == ("gelu_new", 1e-5, "phi")


def test_whole_clip_nests_its_vision_half() -> None:
    whole = {"model_type": "clip", "text_config": {"hidden_size": 768}, "vision_config": CLIP_L}
    assert vision_config(whole) == vision_config(CLIP_L)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "describes a \\['LlavaLlamaForCausalLM'\\] of model_type 'llava'",
        ),
        ({"model_type": "llama"}, "of model_type 'llama'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_attention_heads": 33}, "cannot be cut into 33 heads"),
        ({"num_key_value_heads": 5}, "5 key heads"),
        (
            {"hidden_act": "gelu"},
            "hidden_act is 'gelu' in its config.json; the export implements 'silu' only",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"pad_train_clip_images": False}, "pad_train_clip_images is False"),
        ({"vision_tower_for_mask": False}, "vision_tower_for_mask is False"),
        ({"image_feature_scale_num": 3}, "image_feature_scale_num is 3"),
        ({"mm_use_im_start_end": False}, "mm_use_im_start_end is False"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"masks_process_with_clip": True}, "masks_process_with_clip is True"),
        ({"resize_vision_tower_size": 450}, "450 px, wanted a multiple of 28"),
        ({"resize_vision_tower_size": 462}, "462 px, wanted a multiple of 28"),  # an odd grid
        ({"mm_vision_select_layer": -26}, "mm_vision_select_layer is -26, wanted 1 to 24"),
        ({"mm_vision_shallow_layer": 0}, "mm_vision_shallow_layer is 0"),
        ({"mm_vision_select_layer": [6, -11]}, r"mm_vision_select_layer is \[6, -11\]"),
        ({"mm_hidden_size": 1280}, "trained with a CLIP of width 1280"),
        ({"out_dim": 250}, "a decoder of width 250"),
        ({"mask_decoder_num_heads": 7}, "into 7 heads"),
    ],
)
def test_refusals_name_the_key(changes: Json, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PixelLMConfig.from_configs(RELEASED_7B | changes, CLIP_L, "here/pixellm")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "siglip_vision_model"}, "wanted clip or clip_vision_model"),
        ({"hidden_act": "relu"}, "'relu'; the graph implements"),
        ({"num_channels": 1}, "1 channels"),
        ({"patch_size": 13}, "no multiple"),
        ({"num_attention_heads": 15}, "no multiple"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ],
)
def test_refusals_of_clip(changes: Json, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PixelLMConfig.from_configs(RELEASED_7B, CLIP_L | changes)


@pytest.mark.parametrize("which", ["language", "CLIP"])
def test_no_value_of_any_key_breaks_the_reader(which: str) -> None:
    """Whatever stands in config.json, the answer is a config or an InputError."""
    for key in {
        **RELEASED_7B,
        "rope_theta": 0,
        "head_dim": 0,
        **CLIP_L,
        "layer_norm_eps": 0,
        "vision_config": 0,
    }:
        for value in (None, "x", "", [], [1], {}, {"a": 1}, -1, 0, 1, 1.5, True, float("nan")):
            model, clip = (
                (RELEASED_7B | {key: value}, CLIP_L)
                if which == "language"
                else (RELEASED_7B, CLIP_L | {key: value})
            )
            try:
                PixelLMConfig.from_configs(model, clip)
            except InputError:
                continue


def place(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("named", "where"),
    [
        ("openai/clip-vit-large-patch14-336", "clip"),
        ("openai/clip-vit-large-patch14-336", "hf_model/clip"),
        ("openai/clip-vit-large-patch14-336", "clip-vit-large-patch14-336"),
        ("openai/clip-vit-large-patch14-336", "hf_model/clip-vit-large-patch14-336"),
        ("/mnt/training/ckpt/clip-vit-large-patch14-336", "clip-vit-large-patch14-336"),
        ("towers/mine", "hf_model/towers/mine"),
        (None, "clip"),
    ],
)
def test_the_vision_tower_is_found(named: str | None, where: str, tmp_path: Path) -> None:
    checkpoint = place(tmp_path / "hf_model")
    tower = place(tmp_path / where)
    found = find_vision_tower(checkpoint, {"vision_tower": None, "mm_vision_tower": named})
    assert found.resolve() == tower.resolve()


def test_the_flag_wins(tmp_path: Path) -> None:
    checkpoint, mine = place(tmp_path / "hf_model"), place(tmp_path / "mine")
    place(tmp_path / "clip")
    assert find_vision_tower(checkpoint, {}, mine) == mine
    with pytest.raises(InputError, match=r"--vision-tower .*nowhere has no config\.json"):
        find_vision_tower(checkpoint, {}, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("openai/clip-vit-large-patch14-336", "download openai/clip-vit-large-patch14-336 and"),
        ("/opt/x/clip-vit-large-patch14-336", "download openai/clip-vit-large-patch14-336 and"),
        (None, "download the CLIP it was trained with and"),
    ],
)
def test_a_missing_tower_says_what_to_fetch(named: str | None, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        find_vision_tower(place(tmp_path / "hf_model"), {"mm_vision_tower": named})
    assert "--vision-tower DIR" in str(caught.value)


def test_reading_a_config_needs_neither_torch_nor_transformers() -> None:
    """optimum's normalised configs import in a tenth of a second; transformers takes ten times that."""
    script = "import sys; sys.modules.update(torch=None, transformers=None); "
    script += "from pixelrt_export.model_config import vision_config; "
    script += f"print(vision_config({CLIP_L}).hidden)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}; {script}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1024\n", done.stderr
