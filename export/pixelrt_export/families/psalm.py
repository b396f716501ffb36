"""PSALM: how its checkpoint becomes a bundle, and what the bundle promises to the runtime.

One pass of the language model over `text <image> text conditions text <mask tokens>` gives Q mask queries and K
conditions (classes, one sentence, or regions); the pixel decoder turns them into Q masks and their Q x K scores.

Letters: B prompts about one image, S new tokens, Q mask queries, K conditions, H width of the language model,
T = t * t image tokens, D decoder width, h x w = a quarter of the input's side, L decoder layers, n_l positions
of level l = 0, 1, 2 (1/32, 1/16, 1/8 of the side).

Graphs (names, inputs -> outputs; `activations` types unless said):

  encoder        pixels (1, 3, size, size) float32
                 -> image_tokens (1, T, H)
                    mask_features (1, D, h, w), mask_features.l (1, D, n_l) for l in 0..2,
                    key.i (1, heads, d, n), value.i (1, heads, n, d) for i in 0..L-1
                 Everything but image_tokens goes unchanged into pixel_decoder; any batch is allowed here.
  language       inputs_embeds (B, S, H), position_ids (B, S), attn_mask (B, 1, S, T), past.*, [write_indices (B,)]
                 as in every language graph, and
                 pool (B, K, S): row k holds 1/n at the n tokens of condition k of this chunk (a region: one 1.0);
                 condition_kind (B,) int64: which projector, see manifest["conditions"];
                 query_rows (Q,) int64: where in this chunk the mask tokens lie
                 -> conditions (B, K, D), queries (B, Q, D), present.*
                 K and Q may be 0: a chunk that only fills the cache (constant head, image). A long list of classes
                 may be read in several chunks, cut between classes; each chunk then gives its own conditions.
  pixel_decoder  queries (B, Q, D), conditions (B, K, D), condition_kind (B,) int64, the encoder's features
                 -> mask_logits (B, Q, h, w) float32, scores (B, Q, K) float32 (dot products: no softmax or sigmoid)

`condition_kind` is an input, and not three outputs a graph, because a prompt has conditions of one kind: the
three heads are one stacked weight (3, ...) of which a Gather takes a slice, nothing is computed to be thrown
away, and prompts of different kinds still make one batch.

Manifest, beside what every family writes:

  image       size, patch, mean, std and `fill`: the value of padding, one a channel, after normalisation (the
              original pads with 128 before it). Resized by the long side, padded right and below.
  prompt      templates: kind -> text with one <image>, `{conditions}`, and <seg> at its end. What the original
              writes after <seg> is left out: nothing that is read can look at it.
              condition: kind -> marker. `{conditions}` becomes the marker once a condition, joined by `separator`.
              separator ", ", class_suffix and sentence_suffix: the text "[SEG]" that follows each class name and
              the sentence; sentence_item " {sentence}.": all sentences are written one after another;
              background: the class name that always comes last (the no-object class).
              Encode the text between markers piece by piece, without special tokens; no bos.
              <cls> -> ids of name + suffix, <refer> -> ids of the sentences + suffix, both pooled as a whole;
              <region> -> one vector, the mean over the region's pixels of the image tokens sampled bilinearly at
              (y, x) / size * (t - 1); <image> -> image_tokens; <seg> -> the mask tokens.
  conditions  kind -> index for `condition_kind`: class 0, sentence 1, region 2.
  tokens      tokenizer; seg: id of [SEG]; eos; image_tokens T; head: count of tokens before <image>, the same in
              every template, so that their cache serves all prompts; mask_tokens {first, count}: rows of the token
              table (embeddings.bin) that hold the learned mask tokens, after the vocabulary.
  language    hidden, layers, max_positions (rows of the rotary table: the longest prompt, image and masks included).
  decoder     width D, queries Q, mask_size [h, w].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.errors import InputError
from pixelrt.families.psalm_prompt import REGION, PsalmPrompt, tail_of
from pixelrt.families.psalm_regions import region_masks, region_vectors
from pixelrt.image import ImageSpec, open_image, prepare
from pixelrt.queries import Regions
from pixelrt.tokens import TokenTable

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.graph import Graph
from pixelrt_export.graphs.language import OPSETS, build_language
from pixelrt_export.graphs.psalm import build_encoder, build_pixel_decoder, condition_head
from pixelrt_export.licence import licence_of
from pixelrt_export.psalm_config import PsalmConfig
from pixelrt_export.psalm_tensors import dead_tensors, psalm_tensors
from pixelrt_export.psalm_tokenizer import SEG, PsalmTokenizer, read_psalm_tokenizer
from pixelrt_export.quantize.language import Text
from pixelrt_export.quantize.plan import Model
from pixelrt_export.quantize.records import Record
from pixelrt_export.sink import Sink

ENCODER_LAYERS = (
    "swin.layers."  # of the encoder, what int8 rounds: the tower, not projector and pixel decoder
)
TYPED = True  # it is asked typed queries (`Record.query`), not words
VISION_OPSET = 20  # the oldest with Gelu and N-dimensional GridSample

# Conversation `llava_phi` of the original; up to <image> the same for every task.
HEAD = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    "This is an image "
)
ANSWER = " [/INST] \nSure, the segmentation result is <seg>"
TEMPLATES = {
    # "Panoptic" for instance, semantic and open-vocabulary segmentation too: so it was trained and evaluated.
    "class": "<image>, Please do Panoptic Segmentation.\n"
    "This is all the candidate categories: {conditions}.\n" + ANSWER,
    # "doing" is the original's.
    "sentence": "<image>, Please doing Referring Segmentation according to the following instruction:\n{conditions}"
    + ANSWER,
    # Two spaces after the colon, and [SEG] as a plain token before the mask tokens.
    "region": "<image>, Please segment by given regions\nThis is all regions:  {conditions}.\n [/INST] \n[SEG]<seg>",
}
MARKERS = {"class": "<cls>", "sentence": "<refer>", "region": "<region>"}
CONDITIONS = {"class": 0, "sentence": 1, "region": 2}  # in the order of psalm_tensors.PROJECTORS
PROMPT = {
    "templates": {kind: HEAD + text for kind, text in TEMPLATES.items()},
    "condition": MARKERS,
    "separator": ", ",
    "class_suffix": SEG,
    "sentence_suffix": SEG,
    "sentence_item": " {sentence}.",
    "background": "background",
}
MEAN, STD, PADDING = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 128.0  # on the 0..255 scale
# The float32 numbers that normalising a padded pixel gives, to the last bit.
FILL = (np.float32(PADDING) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


def sources(checkpoint: Checkpoint, vision_tower: Path | None) -> dict[str, Checkpoint]:
    """All that is read, by what stands before the names of its files in `provenance`."""
    if vision_tower is not None:
        raise InputError("PSALM holds its own vision tower: leave out --vision-tower.")
    return {"": checkpoint}


def write_bundle(checkpoint: Checkpoint, sink: Sink) -> None:
    """Check every tensor, then write graphs, token table, tokenizer and this family's part of the manifest."""
    found, tensor = checkpoint.shapes(), checkpoint.tensor
    config = PsalmConfig.read(checkpoint.config, found, str(checkpoint.folder))
    dead = checkpoint.account(psalm_tensors(config, found), dead_tensors(config, found))
    tokenizer = read_psalm_tokenizer(checkpoint.folder, config.language.vocab)

    sink.token_table(tensor("model.embed_tokens.weight"), tensor("seg_query"))
    sink.text("tokenizer.json", tokenizer.tokenizer.to_str(pretty=False))
    sink.manifest |= _manifest(config, tokenizer) | {
        "provenance": {
            "checkpoint": checkpoint.folder.resolve().name,
            "architecture": checkpoint.config.get("architectures", ["PSALM"])[0],
            "files": sink.hashes(),
            "left_out": dead,
        },
        "license": licence_of(checkpoint.folder),
    }

    def encoder(g: Graph) -> None:
        build_encoder(g, tensor, config)

    reader = Reader(sink.folder, sink.manifest)
    sink.quantise(Model(encoder, VISION_OPSET, ENCODER_LAYERS, tensor, config.language, reader))
    sink.graph("encoder", "encoder", VISION_OPSET, encoder)
    for name, cache in (("language", "in_place"), ("language_compat", "concat")):
        sink.graph(
            name,
            "language",
            OPSETS[cache],
            lambda g, cache=cache: build_language(
                g, tensor, config.language, cache, condition_head(tensor, config)
            ),
            cache=cache,
        )
    sink.graph(
        "pixel_decoder", "pixel_decoder", VISION_OPSET, lambda g: build_pixel_decoder(g, tensor, config)
    )


class Reader:
    """What the graphs read of a picture and a query; see `quantize.plan.Reader`."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """folder: of the bundle that is being written; token table and tokenizer are there."""
        tokens, table = manifest["tokens"], manifest["embeddings"]
        self._spec = ImageSpec.from_dict(manifest["image"])
        self._table = TokenTable(folder / table["file"], table["dtype"], table["shape"])
        self._prompt = PsalmPrompt(folder / tokens["tokenizer"], manifest["prompt"], tokens)

    def picture(self, record: Record) -> dict[str, np.ndarray]:
        return {"pixels": prepare(open_image(record.image), self._spec).pixels}

    def text(self, record: Record, encoded: Mapping[str, np.ndarray]) -> Text:
        assert record.query is not None
        tail, tokens = tail_of(self._prompt, record.query), encoded["image_tokens"][0]
        rows = self._table(np.where(tail.ids == REGION, 0, tail.ids))
        if isinstance(record.query, Regions):
            image = open_image(record.image)
            masks, content = region_masks(record.query, image.shape[:2]), prepare(image, self._spec).content
            rows[tail.ids == REGION] = region_vectors(masks, tokens, content, self._spec.size)
        states = np.concatenate([self._table(self._prompt.head), tokens, rows])
        return Text(states, np.ones(len(states), np.bool_))


def _manifest(config: PsalmConfig, tokenizer: PsalmTokenizer) -> dict[str, Any]:
    return {
        "family": "psalm",
        "image": {
            "size": config.image_size,
            "patch": config.patch,
            "mean": list(MEAN),
            "std": list(STD),
            "fill": FILL.astype(float).tolist(),
        },
        "prompt": PROMPT,
        "conditions": CONDITIONS,
        "tokens": {
            "tokenizer": "tokenizer.json",
            "seg": tokenizer.seg,
            "eos": tokenizer.eos,
            "image_tokens": config.image_tokens,
            "head": len(tokenizer.encode(HEAD)),
            "mask_tokens": {"first": config.language.vocab, "count": config.queries},
        },
        "language": {
            "hidden": config.language.hidden,
            "layers": config.language.layers,
            "max_positions": config.language.max_positions,
        },
        "decoder": {
            "width": config.width,
            "queries": config.queries,
            "mask_size": [config.mask_grid, config.mask_grid],
        },
    }
