"""The tiny model in the layout of a release: config, fp16 safetensors, LLaMA tokenizer files, CLIP beside it.

`python -m pixelrt_export.tiny.checkpoint STATE.pt FOLDER` writes one from a training state.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelrt_export.reference.pixellm import PixelLM, PixelLMSizes
from pixelrt_export.tiny.things import LONG_SIDE
from pixelrt_export.tiny.tokenizer import ADDED, BOS, EOS, Tokenizer

CLIP_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_channels": 3,
    "patch_size": 10,
    "image_size": LONG_SIDE,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "torch_dtype": "float16",
}
DECODER_MLP = 256


def config(vocab: int) -> dict:
    """config.json of the language checkpoint; the last five keys hold sizes that the original hard-codes."""
    return {
        "architectures": ["PixelLMForCausalLM"],
        "model_type": "llava",
        "vocab_size": vocab,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "mm_hidden_size": 128,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": False,
        "mm_vision_tower": "clip",
        "vision_tower": "clip",
        "train_mask_decoder": True,
        "out_dim": 96,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": True,
        "pretrain_mm_mlp_adapter": None,
        "resize_vision_tower": True,
        "pad_train_clip_images": True,
        "vision_tower_for_mask": True,
        "separate_mm_projector": True,
        "mm_projector_hidden_dim": 2,
        "mm_projector_out_dim": 1,
        "image_aspect_ratio": "square",
        "image_grid_pinpoints": None,
        "use_mm_proj": True,
        "resize_vision_tower_size": LONG_SIDE,
        "mm_vision_shallow_layer": -4,
        "mask_decoder_num_heads": 4,
        "seg_token_num": 3,
        "image_feature_scale_num": 2,
    }


def new_model(vocab: int) -> PixelLM:
    """Randomly initialised; embeddings and the output head start small."""
    sizes = PixelLMSizes.read(config(vocab), CLIP_CONFIG)
    net = PixelLM(replace(sizes, decoder=replace(sizes.decoder, mlp=DECODER_MLP)))
    for name, p in net.named_parameters():
        if name == "lm_head.weight" or (p.ndim == 2 and "embed" in name):
            nn.init.normal_(p, std=0.02)
    return net


def _write(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _tokenizer_files(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "tokenizer.model").write_bytes(tokenizer.pieces.serialized_model_proto())
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        key: {"content": content, **plain}
        for key, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    _write(folder, "added_tokens.json", tokenizer.added)
    _write(folder, "special_tokens_map.json", {**special, "pad_token": "<unk>"})
    _write(
        folder,
        "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 1024,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            **{k: {"__type": "AddedToken", **v} for k, v in special.items()},
        },
    )


def save_checkpoint(net: PixelLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Written beside `folder`, then moved into its place; a README.md that stands there is kept."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    (fresh / "clip").mkdir(parents=True)
    for part, tensors in zip((fresh, fresh / "clip"), net.split_state(), strict=True):
        save_file(
            {key: value.half().contiguous() for key, value in tensors.items()},
            part / "model.safetensors",
            metadata={"format": "pt"},
        )
        (part / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    _write(fresh, "config.json", config(net.sizes.llama.vocab_size))
    _write(fresh / "clip", "config.json", CLIP_CONFIG)
    _write(
        fresh,
        "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": 0,
            "transformers_version": "4.31.0",
        },
    )
    _tokenizer_files(fresh, tokenizer)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[PixelLM, Tokenizer]:
    """The model as float32 (from the stored fp16) and its tokenizer; CLIP comes from FOLDER/clip."""
    configs = [json.loads((part / "config.json").read_text()) for part in (folder, folder / "clip")]
    tensors = [load_file(part / "model.safetensors") for part in (folder, folder / "clip")]
    return PixelLM.from_tensors(*configs, *tensors), Tokenizer.read(folder)


def model_and_tokenizer(state: dict) -> tuple[PixelLM, Tokenizer]:
    tokenizer = Tokenizer(state["tokenizer"])
    net = new_model(vocab_size(tokenizer))
    net.load_state_dict(state["net"])
    return net.eval(), tokenizer


def vocab_size(tokenizer: Tokenizer) -> int:
    return tokenizer.pieces.get_piece_size() + len(ADDED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a checkpoint folder from a training state.")
    parser.add_argument("state", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    save_checkpoint(
        *model_and_tokenizer(torch.load(args.state, weights_only=False, map_location="cpu")), args.folder
    )
