"""PixelLM: how its checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelrt.errors import InputError

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.export import Sink
from pixelrt_export.graphs.language import OPSETS, build_language, token_head
from pixelrt_export.graphs.pixellm import build_encoder, build_pixel_decoder
from pixelrt_export.licence import licence_of
from pixelrt_export.llama_tokenizer import (
    LlamaTokenizer,
    image_mark_ids,
    read_llama_tokenizer,
    seg_token_ids,
    tokenizer_hashes,
)
from pixelrt_export.pixellm_tensors import DEAD_TENSORS, decoder_depth_and_mlp, pixellm_tensors
from pixelrt_export.vision_tower import (
    DEAD_VISION_TENSORS,
    find_vision_tower,
    open_vision_tower,
    vision_tensors,
)

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
    clip = open_vision_tower(find_vision_tower(checkpoint.folder, checkpoint.config, vision_tower))
    config = PixelLMConfig.from_configs(checkpoint.config, clip.config, str(checkpoint.folder))
    found = checkpoint.shapes()
    for count, tensors in ((config.language.layers, found), (config.vision.layers, clip.shapes())):
        if count > len(tensors):
            raise InputError(
                f"{checkpoint.folder}: config.json says {count} layers, more than there are tensors "
                f"({len(tensors)}). Take both from one release."
            )
    dead = checkpoint.account(pixellm_tensors(config, found), DEAD_TENSORS)
    dead |= clip.account(vision_tensors(config), DEAD_VISION_TENSORS)
    depth, _ = decoder_depth_and_mlp(found)
    tokenizer = read_llama_tokenizer(checkpoint.folder)
    if tokenizer.size > config.language.vocab:
        raise InputError(
            f"{checkpoint.folder}: its tokenizer has {tokenizer.size} ids and its model {config.language.vocab} "
            "rows of embeddings. Take both from one release."
        )

    sink.graph(
        "encoder",
        "encoder",
        VISION_OPSET,
        lambda g: build_encoder(g, checkpoint.tensor, clip.tensor, config, depth),
    )
    for name, cache in (("language", "in_place"), ("language_compat", "concat")):
        sink.graph(
            name,
            "language",
            OPSETS[cache],
            lambda g, cache=cache: build_language(
                g, checkpoint.tensor, config.language, cache, token_head(checkpoint.tensor, config.language)
            ),
            cache=cache,
        )
    sink.graph(
        "pixel_decoder",
        "pixel_decoder",
        VISION_OPSET,
        lambda g: build_pixel_decoder(g, checkpoint.tensor, config, depth),
    )
    sink.token_table(checkpoint.tensor("model.embed_tokens.weight"))
    sink.text("tokenizer.json", tokenizer.tokenizer.to_str(pretty=False))
    sink.manifest |= {
        "family": "pixellm",
        "image": {
            "size": config.image_size,
            "patch": config.vision.patch,
            "mean": list(MEAN),
            "std": list(STD),
        },
        "prompt": {"template": TEMPLATE},
        "tokens": _tokens(config, tokenizer),
        "language": {
            "hidden": config.language.hidden,
            "layers": config.language.layers,
            "max_positions": config.language.max_positions,
        },
        "provenance": {
            "checkpoint": checkpoint.folder.resolve().name,
            "files": {
                **checkpoint.sha256(),
                **tokenizer_hashes(checkpoint.folder),
                **{f"clip/{name}": value for name, value in clip.sha256().items()},
            },
            "left_out": dead,
        },
        "license": licence_of(checkpoint.folder),
    }


def _tokens(config: PixelLMConfig, tokenizer: LlamaTokenizer) -> dict[str, Any]:
    image_mark_ids(tokenizer.added_tokens)  # the template needs <im_start> and <im_end>
    return {
        "tokenizer": "tokenizer.json",
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "pad": tokenizer.unk,  # the original pads with unk, and reads it as the end of a prompt
        "seg": seg_token_ids(tokenizer.added_tokens, config.seg_tokens),
        "seg_scales": config.scales,
        "image_tokens": config.image_tokens,
    }
