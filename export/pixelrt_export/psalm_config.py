"""A PSALM checkpoint's settings: config.json, and the shapes of its tensors for what no config.json says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pixelrt.errors import InputError

from pixelrt_export.model_config import LanguageConfig, count, language_config, require_fixed
from pixelrt_export.shards import Shape

# The one value of each flag that the graphs implement.
FIXED = {
    "mm_projector_type": "swin_conv",
    "mask_decode_train": True,  # without it the original builds no mask modules
    "with_norm": True,
    "with_layernorm": False,
    "tie_word_embeddings": False,
}
IMAGE_SIZE = 1024  # px a side; stands in the original's training settings, not in config.json
POSITIONS = 16384  # the original's rotary table grows with the prompt; ours is as long as 1,000 classes need
LEVELS, POINTS = 3, 4  # of deformable attention
GROUPS = 32  # of GroupNorm
STAGES = 4  # of Swin


@dataclass(frozen=True)
class SwinStage:
    """One stage: its resolution's width, and how its blocks cut it."""

    width: int
    heads: int
    depth: int
    window: int  # positions a side
    grid: int  # positions a side, window padding not counted


@dataclass(frozen=True)
class PsalmConfig:
    language: LanguageConfig
    image_size: int  # px a side
    patch: int
    swin: tuple[SwinStage, ...]
    width: int  # D: of pixel decoder and predictor
    heads: int  # of both
    encoder_layers: int
    decoder_layers: int
    queries: int  # mask tokens

    @classmethod
    def read(
        cls, config: Mapping[str, Any], shapes: Mapping[str, Shape], where: str = "The checkpoint"
    ) -> PsalmConfig:
        """From config.json and the names and shapes of the weights; `where` opens the error sentences."""
        require_psalm(config, where)
        require_fixed(config, FIXED, where)
        language = replace(language_config(config, "phi", where), max_positions=POSITIONS)
        found = _Shapes(shapes, where)
        size = count(config, "image_size", where, IMAGE_SIZE)  # ours
        patch = found["model.vision_tower.patch_embed.proj.weight"][3]
        if size % (patch << STAGES - 1):
            raise InputError(
                f"{where}: image_size is {size} px, wanted a multiple of {patch << STAGES - 1} "
                f"(patches of {patch} px, merged {STAGES - 1} times)"
            )
        read = cls(
            language=language,
            image_size=size,
            patch=patch,
            swin=tuple(_stage(found, stage, size // patch >> stage) for stage in range(STAGES)),
            width=found["pixel_decoder.mask_features.weight"][0],
            heads=_deform_heads(found),
            encoder_layers=found.layers("pixel_decoder.transformer.encoder.layers"),
            decoder_layers=found.layers("predictor.transformer_cross_attention_layers"),
            queries=found["seg_query"][0],
        )
        if read.width % read.heads or read.width % GROUPS or read.width % 4:
            raise InputError(
                f"{where}: a pixel decoder of width {read.width} cannot be cut into {read.heads} heads "
                f"and {GROUPS} groups"
            )
        return read

    @property
    def token_grid(self) -> int:
        """Image tokens of the language model a side: Swin's last map after a convolution of stride 2."""
        return -(-self.swin[-1].grid // 2)

    @property
    def image_tokens(self) -> int:
        return self.token_grid**2

    @property
    def mask_grid(self) -> int:
        """Positions a side of the masks."""
        return self.swin[0].grid

    @property
    def levels(self) -> tuple[int, ...]:
        """Positions a side of the pixel decoder's levels, coarse first."""
        return tuple(stage.grid for stage in self.swin[:0:-1])


class _Shapes(dict[str, Shape]):
    """Shapes by name; a name that is not there is the user's error."""

    def __init__(self, shapes: Mapping[str, Shape], where: str) -> None:
        super().__init__(shapes)
        self.where = where

    def __missing__(self, key: str) -> Shape:
        raise InputError(
            f"{self.where} has no tensor {key}, which tells its sizes: is the download complete?"
        )

    def layers(self, prefix: str) -> int:
        """How many layers `prefix.0`, `prefix.1`, … there are."""
        number = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return 1 + max((int(m[1]) for key in self if (m := number.match(key))), default=-1)


def _stage(found: _Shapes, stage: int, grid: int) -> SwinStage:
    blocks = f"model.vision_tower.layers.{stage}.blocks"
    offsets, heads = found[f"{blocks}.0.attn.relative_position_bias_table"]
    window = (round(offsets**0.5) + 1) // 2  # one row for each offset, 2 window - 1 a side
    width = found[f"model.vision_tower.norm{stage}.weight"][0]
    if width % heads or (2 * window - 1) ** 2 != offsets:
        raise InputError(
            f"{found.where}: Swin stage {stage} of width {width} has {heads} heads, {offsets} offsets"
        )
    return SwinStage(width, heads, found.layers(blocks), window, grid)


def _deform_heads(found: _Shapes) -> int:
    name = "pixel_decoder.transformer.encoder.layers.0.self_attn.attention_weights.bias"
    heads, rest = divmod(found[name][0], LEVELS * POINTS)
    if rest or not heads:
        raise InputError(
            f"{found.where}: {name} is {found[name]}, wanted heads x {LEVELS} levels x {POINTS} points"
        )
    return heads


def require_psalm(config: Mapping[str, Any], where: str) -> None:
    """Refuse another model's config.json."""
    kind = config.get("model_type")
    if kind != "llava_phi":
        raise InputError(
            f"{where}: its config.json is of model_type {kind!r}; this export reads PSALM, 'llava_phi'"
        )
