"""The small PSALM in the layout of the release: config.json, fp16 safetensors, GPT-2's tokenizer files.

`python -m pixelrt_export.tiny.psalm_checkpoint STATE.pt FOLDER` writes one from a training state.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelrt_export.model_config import language_config
from pixelrt_export.psalm_config import PsalmConfig, SwinStage
from pixelrt_export.reference.deform_attn import DeformableAttention
from pixelrt_export.reference.psalm import Psalm, Widths
from pixelrt_export.tiny.psalm_tokenizer import vocab_size

SIDE, PATCH, WINDOW = 160, 4, 5  # px, px, positions: no stage pads its windows
SWIN = ((40, 2, 2), (80, 4, 2), (160, 8, 2), (320, 16, 1))  # width, heads, blocks
WIDTH, HEADS, ENCODER_LAYERS, DECODER_LAYERS, QUERIES = 96, 4, 3, 6, 24
WIDTHS = Widths(swin=(160, 320, 640, 1280), projector=80, encoder=256, predictor=256)
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


def config(vocab: int) -> dict:
    """config.json; image_size is a key of ours for what the original's code states."""
    return {
        "architectures": ["PSALM"],
        "model_type": "llava_phi",
        "vocab_size": vocab,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mm_projector_type": "swin_conv",
        "mm_input_embeds": SWIN[-1][0],
        "mm_hidden_size": WIDTH,
        "projector_outdim": 128,
        "swin_type": "base",
        "with_norm": True,
        "with_layernorm": False,
        "mask_decode_train": True,
        "image_size": SIDE,
        "torch_dtype": "float16",
        "transformers_version": "4.36.2",
    }


def sizes(vocab: int) -> PsalmConfig:
    return PsalmConfig(
        language=language_config(config(vocab), "phi"),
        image_size=SIDE,
        patch=PATCH,
        swin=tuple(
            SwinStage(width, heads, depth, WINDOW, SIDE // PATCH >> i)
            for i, (width, heads, depth) in enumerate(SWIN)
        ),
        width=WIDTH,
        heads=HEADS,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        queries=QUERIES,
    )


def new_model(vocab: int) -> Psalm:
    """Randomly initialised, its batch norms fixed at what they are: a scale and a shift."""
    net = Psalm(sizes(vocab), WIDTHS)
    for name, p in net.named_parameters():
        if name == "model.mm_projector.fc.weight":
            nn.init.normal_(p, std=0.02)  # image tokens as small as words, so that the layers can change them
        elif name.endswith(("embed_tokens.weight", "lm_head.weight", "seg_query", "bias_table")):
            nn.init.normal_(p, std=0.02)
        elif name.endswith(("query_embed.weight", "level_embed.weight", "level_embed", "query_feat.weight")):
            nn.init.normal_(p, std=0.3)
    for module in net.modules():
        if isinstance(module, DeformableAttention):
            module.reset()
    return net.eval()


def save_checkpoint(net: Psalm, tokenizer: Path, folder: Path) -> None:
    """tokenizer: folder with its files. Written beside `folder`, then moved into its place; a README.md is kept."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {
        key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in net.state_dict().items()
    }
    save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    written = json.dumps(config(net.config.language.vocab), indent=2)
    (fresh / "config.json").write_text(written + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, fresh)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path) -> Psalm:
    """The model as float32 (from the stored fp16)."""
    return Psalm.from_tensors(
        json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a checkpoint folder from a training state.")
    parser.add_argument("state", type=Path, help="state.pt, the tokenizer's files beside it in tokenizer/")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    words = args.state.parent / "tokenizer"
    model = new_model(vocab_size(words))
    model.load_state_dict(torch.load(args.state, weights_only=False, map_location="cpu")["net"])
    save_checkpoint(model, words, args.folder)
