"""PixelLM: how its checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.clip_folder import find_vision_tower
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.export import Sink
from pixelrt_export.families.pixellm_tensors import CLIP_DEAD, DEAD, expected_clip_tensors, expected_tensors
from pixelrt_export.graphs.language import OPSETS, build_language
from pixelrt_export.graphs.pixellm import build_encoder, build_pixel_decoder
from pixelrt_export.llama_tokenizer import read_tokenizer

VISION_OPSET = 20  # the oldest with Gelu; TensorRT 10.3 reads it

# Conversation `llava_v1` of the original with its two roles; `chat.py` puts the image first.
TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "USER: <im_start><image><im_end>\n{question} ASSISTANT:"
)
# The original normalises 0..255 values with these, not with CLIP's own constants.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def write_bundle(checkpoint: Checkpoint, sink: Sink, vision_tower: Path | None) -> None:
    """Check every tensor, then write graphs, token table, tokenizer and this family's part of the manifest."""
    clip = Checkpoint.open(find_vision_tower(checkpoint.folder, checkpoint.config, vision_tower))
    config = PixelLMConfig.read(checkpoint.config, clip.config)
    dead = checkpoint.account(expected_tensors(config, checkpoint.shapes()), DEAD)
    dead |= clip.account(expected_clip_tensors(config), CLIP_DEAD)
    tokenizer = read_tokenizer(checkpoint.folder)
    seg = tokenizer.seg_ids(config.scales * config.tokens_per_scale)
    tokenizer.image_ids()  # the prompt template needs <im_start> and <im_end>

    sink.graph(
        "encoder",
        "encoder",
        VISION_OPSET,
        lambda g: build_encoder(g, checkpoint.tensor, clip.tensor, config),
    )
    for name, cache in (("language", "in_place"), ("language_compat", "concat")):
        sink.graph(
            name,
            "language",
            OPSETS[cache],
            lambda g, cache=cache: build_language(g, checkpoint.tensor, config.language, cache),
            cache=cache,
        )
    sink.graph(
        "pixel_decoder", "pixel_decoder", VISION_OPSET, lambda g: build_pixel_decoder(g, checkpoint.tensor, config)
    )
    sink.token_table(checkpoint.tensor("model.embed_tokens.weight"))
    sink.text("tokenizer.json", tokenizer.to_json())
    sink.manifest |= {
        "family": "pixellm",
        "image": {"size": config.image_size, "patch": config.vision.patch, "mean": list(MEAN), "std": list(STD)},
        "prompt": {"template": TEMPLATE},
        "tokens": _tokens(config, tokenizer, seg),
        "language": {
            "hidden": config.language.hidden,
            "layers": config.language.layers,
            "max_positions": config.language.max_positions,
        },
        "provenance": {
            "checkpoint": checkpoint.folder.resolve().name,
            "architecture": checkpoint.config.get("architectures", ["PixelLMForCausalLM"])[0],
            "files": checkpoint.sha256() | {f"clip/{name}": value for name, value in clip.sha256().items()},
            "left_out": dead,
        },
        "license": checkpoint.license(),
    }


def _tokens(config: PixelLMConfig, tokenizer: Any, seg: list[int]) -> dict[str, Any]:
    return {
        "tokenizer": "tokenizer.json",
        "bos": config.language.bos,
        "eos": config.language.eos,
        "seg": seg,
        "seg_scales": config.scales,
        "image_tokens": config.image_tokens,
    }
