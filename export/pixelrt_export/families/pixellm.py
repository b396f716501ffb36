"""PixelLM: how its checkpoint becomes a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.engine_ort import SHORTLIST
from pixelrt.errors import InputError
from pixelrt.families.pixellm_drafts import answer_ids
from pixelrt.image import ImageSpec, open_image, prepare
from pixelrt.prompt import PromptBuilder, read_tokenizer
from pixelrt.tokens import TokenTable

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.graph import Graph
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
from pixelrt_export.quantize.language import Text
from pixelrt_export.quantize.plan import Model
from pixelrt_export.quantize.records import Record
from pixelrt_export.sink import ACTIVATIONS, Sink
from pixelrt_export.vision_tower import (
    DEAD_VISION_TENSORS,
    find_vision_tower,
    open_vision_tower,
    vision_tensors,
)

ENCODER_LAYERS = "clip.layers."  # of the encoder, what int8 rounds: the tower, not projectors and neck
CLIP = "clip/"
TYPED = False  # it is asked words, not typed queries
ANSWER = "Sure, it is [SEG]."
VISION_OPSET = 20  # the oldest with Gelu; TensorRT 10.3 reads it

# Conversation `llava_v1` of the original with its two roles; `chat.py` puts the image first.
TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "USER: <im_start><image><im_end>\n{question} ASSISTANT:"
)
# The original normalises 0..255 values with these, not with CLIP's own constants.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def sources(checkpoint: Checkpoint, vision_tower: Path | None) -> dict[str, Checkpoint]:
    """All that is read, by what stands before the names of its files in `provenance`."""
    tower = find_vision_tower(checkpoint.folder, checkpoint.config, vision_tower)
    return {"": checkpoint, CLIP: open_vision_tower(tower)}


def write_bundle(checkpoint: Checkpoint, sink: Sink) -> None:
    """Check every tensor, then write graphs, token table, tokenizer and this family's part of the manifest."""
    clip = sink.sources[CLIP]
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
            "files": sink.hashes() | tokenizer_hashes(checkpoint.folder),
            "left_out": dead,
        },
        "license": licence_of(checkpoint.folder),
    }
    if sink.answered:
        sink.manifest["drafts"] = [{"prompt": r.prompt, "answer": r.answer} for r in sink.answered]

    def encoder(g: Graph) -> None:
        build_encoder(g, checkpoint.tensor, clip.tensor, config, depth)

    reader = Reader(sink.folder, sink.manifest)
    sink.quantise(Model(encoder, VISION_OPSET, ENCODER_LAYERS, checkpoint.tensor, config.language, reader))
    sink.graph(
        "encoder",
        "encoder",
        VISION_OPSET,
        encoder,
    )

    def language(g: Graph, cache: str, shortlist: bool) -> None:
        head = token_head(checkpoint.tensor, config.language, shortlist)
        build_language(g, checkpoint.tensor, config.language, cache, head)

    spellings = [("language", "in_place", False), ("language_compat", "concat", False)]
    if sink.has_shortlist(config.language):
        spellings.append((SHORTLIST, "in_place", True))
    for name, cache, shortlist in spellings:
        sink.graph(
            name,
            "language",
            OPSETS[cache],
            partial(language, cache=cache, shortlist=shortlist),
            activations=["float32"] if shortlist else ACTIVATIONS,
            cache=cache,
        )
    sink.graph(
        "pixel_decoder",
        "pixel_decoder",
        VISION_OPSET,
        lambda g: build_pixel_decoder(g, checkpoint.tensor, config, depth),
    )


class Reader:
    """What the graphs read of a picture and a question; see `quantize.plan.Reader`."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """folder: of the bundle that is being written; token table and tokenizer are there."""
        tokens, table = manifest["tokens"], manifest["embeddings"]
        self._spec, self._seg = ImageSpec.from_dict(manifest["image"]), tokens["seg"]
        self._table = TokenTable(folder / table["file"], table["dtype"], table["shape"])
        self._prompt = PromptBuilder(
            read_tokenizer(folder / tokens["tokenizer"]),
            manifest["prompt"]["template"],
            tokens["bos"],
            tokens["pad"],
            manifest["language"]["max_positions"] - tokens["image_tokens"],
        )

    def picture(self, record: Record) -> dict[str, np.ndarray]:
        prepared = prepare(open_image(record.image), self._spec)
        return {"pixels": prepared.pixels, "patch_valid": prepared.patch_valid}

    def text(self, record: Record, encoded: Mapping[str, np.ndarray]) -> Text:
        """Prompt, picture, and an answer: the words that PixelLM was trained to begin with, unless it is given."""
        prepared = prepare(open_image(record.image), self._spec)
        prompt, image = self._prompt(record.prompt), encoded["image_tokens"][0]
        answer = answer_ids(self._prompt, record.answer or ANSWER, self._seg)
        states = np.concatenate([self._table(prompt.head), image, self._table(prompt.tail + answer)])
        visible = np.ones(len(states), np.bool_)
        visible[len(prompt.head) : len(prompt.head) + len(image)] = prepared.token_valid
        return Text(states, visible)


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
