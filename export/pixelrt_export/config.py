"""A PixelLM checkpoint's settings: its config.json and its CLIP's -> `PixelLMConfig`, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelrt.errors import InputError

from pixelrt_export.model_config import (
    LanguageConfig,
    VisionConfig,
    count,
    language_config,
    require_fixed,
    stated,
    vision_config,
)

__all__ = ["LanguageConfig", "PixelLMConfig", "VisionConfig"]

# The one value of each flag that the graphs implement; PixelLM's own code forces most of them.
FIXED = {
    "image_feature_scale_num": 2,
    "pad_train_clip_images": True,
    "resize_vision_tower": True,
    "vision_tower_for_mask": True,
    "separate_mm_projector": True,
    "mm_use_im_start_end": True,
    "mm_vision_select_feature": "patch",
    "mm_projector_out_dim": 1,
    "masks_process_with_clip": False,
    "train_mask_decoder": True,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class PixelLMConfig:
    language: LanguageConfig
    vision: VisionConfig
    image_size: int  # px a side
    deep_layer: int  # index of CLIP's hidden states, as a config.json says it: -2 is the last but one
    shallow_layer: int
    projector_hidden: int
    decoder_dim: int
    decoder_heads: int
    tokens_per_scale: int
    scales: int

    @classmethod
    def from_configs(
        cls, config: Mapping[str, Any], clip: Mapping[str, Any], where: str = "The checkpoint"
    ) -> PixelLMConfig:
        """From the two config.json; `where` opens the error sentences.

        Sizes that the original's code states instead of its config are read from keys of ours, where present.
        """
        require_pixellm(config, where)
        require_fixed(config, FIXED, where)
        language = language_config(config, "llama", where)
        read = cls(
            language=language,
            vision=vision_config(clip, f"The CLIP of {where}"),
            image_size=count(config, "resize_vision_tower_size", where, 448),
            deep_layer=stated(config).get("mm_vision_select_layer", -2),
            shallow_layer=stated(config).get("mm_vision_shallow_layer", -11),  # ours
            projector_hidden=count(config, "mm_projector_hidden_dim", where, 2) * language.hidden,
            decoder_dim=count(config, "out_dim", where, 256),
            decoder_heads=count(config, "mask_decoder_num_heads", where, 8),  # ours
            tokens_per_scale=count(config, "seg_token_num", where, 3),
            scales=count(config, "image_feature_scale_num", where, 2),
        )
        read._check(stated(config).get("mm_hidden_size", read.vision.hidden), where)
        return read

    def _check(self, clip_width: int, where: str) -> None:
        if self.image_size % (2 * self.vision.patch):
            raise InputError(
                f"{where}: resize_vision_tower_size is {self.image_size} px, wanted a multiple of "
                f"{2 * self.vision.patch} (two patches of {self.vision.patch} px share an image token)"
            )
        states = self.vision.layers + 1  # before the first layer, and after each
        layers = {"mm_vision_select_layer": self.deep_layer, "mm_vision_shallow_layer": self.shallow_layer}
        for name, layer in layers.items():
            if type(layer) is not int or not -states <= layer < states or layer % states == 0:
                raise InputError(
                    f"{where}: {name} is {layer!r}, wanted 1 to {states - 1}, or its like from the end, "
                    f"-{states - 1} to -1 (this CLIP has {self.vision.layers} layers)"
                )
        if clip_width != self.vision.hidden:
            raise InputError(
                f"{where} was trained with a CLIP of width {clip_width} (mm_hidden_size), and this one is "
                f"{self.vision.hidden} wide: give the right one with --vision-tower DIR"
            )
        if self.decoder_dim % (2 * self.decoder_heads) or self.decoder_dim % 8:
            raise InputError(
                f"{where}: a decoder of width {self.decoder_dim} (out_dim) cannot be cut into "
                f"{self.decoder_heads} heads (mask_decoder_num_heads) at half that width, or into eighths"
            )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.vision.patch

    @property
    def token_grid(self) -> int:
        """Image tokens of the language model a side."""
        return self.grid // 2

    @property
    def image_tokens(self) -> int:
        return self.token_grid**2

    @property
    def deep_layers(self) -> int:
        """CLIP layers that run before the deep features are taken."""
        return self.deep_layer % (self.vision.layers + 1)

    @property
    def shallow_layers(self) -> int:
        return self.shallow_layer % (self.vision.layers + 1)

    @property
    def seg_tokens(self) -> int:
        """Tokens of one target."""
        return self.tokens_per_scale * self.scales


def require_pixellm(config: Mapping[str, Any], where: str) -> None:
    """Refuse another model's config.json."""
    wanted, kind = "PixelLMForCausalLM", "llava"
    architectures, got = config.get("architectures") or [wanted], config.get("model_type")
    if not isinstance(architectures, list) or wanted not in architectures or got != kind:
        raise InputError(
            f"{where}: its config.json describes a {architectures!r} of model_type {got!r}; this export "
            f"reads [{wanted!r}] of model_type {kind!r}"
        )
