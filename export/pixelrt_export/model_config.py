"""Sizes of language and vision models: `language_config(config, kind)`, `vision_config(clip)`.

Read through optimum's normalised configs, which know each model type's own names for the same thing, and
checked: what the graphs do not express is refused by name, so that all that follows may trust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pixelrt.errors import InputError

# What the model types' own config classes assume where a config.json leaves a key out.
CLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "rms_norm_eps": 1e-6, "partial_rotary_factor": 1.0},
    "phi": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
}
TEXT_NORM_EPS = {"llama": "rms_norm_eps", "phi": "layer_norm_eps"}
FIXED_TEXT = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "qk_layernorm": False}


@dataclass(frozen=True)
class LanguageConfig:
    kind: str  # "llama" or "phi"
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rotary_dims: int  # of the head_dim
    activation: str


@dataclass(frozen=True)
class VisionConfig:
    hidden: int
    layers: int
    heads: int
    mlp: int
    patch: int  # px a side
    native_size: int  # px a side, what the position table was trained at
    norm_eps: float
    activation: str

    @property
    def native_positions(self) -> int:
        """Rows of the position table, the class token's included."""
        return (self.native_size // self.patch) ** 2 + 1


def language_config(config: Mapping[str, Any], kind: str, where: str = "The checkpoint") -> LanguageConfig:
    """kind: optimum's model type, "llama" or "phi" (a config.json names the family); `where` opens errors."""
    from optimum.utils.normalized_config import NormalizedConfigManager

    require_fixed(config, FIXED_TEXT, where)
    defaults = {"max_position_embeddings": 2048, "rope_theta": 10000.0} | TEXT_DEFAULTS[kind]
    values = {"num_key_value_heads": config.get("num_attention_heads")} | defaults | stated(config)
    for key in (TEXT_NORM_EPS[kind], "rope_theta", "partial_rotary_factor"):
        positive(values, key, where)
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        count(values, key, where)
    count(values, "num_key_value_heads", where)
    count(values, "max_position_embeddings", where)
    text = NormalizedConfigManager.get_normalized_config_class(kind)(SimpleNamespace(**values))

    hidden, heads, kv_heads = text.hidden_size, text.num_attention_heads, text.config.num_key_value_heads
    head_dim = count(values, "head_dim", where, hidden // heads or 1)
    rotary_dims = int(head_dim * text.partial_rotary_factor)
    if hidden != heads * head_dim or heads % kv_heads or rotary_dims % 2:
        raise InputError(
            f"{where}: width {hidden} cannot be cut into {heads} heads of {head_dim}, {kv_heads} key heads"
        )
    activation = TEXT_DEFAULTS[kind]["hidden_act"]
    require_fixed(values, {"hidden_act": activation}, where)
    return LanguageConfig(
        kind=kind,
        hidden=hidden,
        intermediate=text.intermediate_size,
        layers=text.num_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=text.vocab_size,
        max_positions=text.max_position_embeddings,
        norm_eps=float(getattr(text, TEXT_NORM_EPS[kind])),
        rope_theta=float(text.rope_theta),
        rotary_dims=rotary_dims,
        activation=activation,
    )


def vision_config(clip: Mapping[str, Any], where: str = "CLIP") -> VisionConfig:
    """From the config.json of a CLIPVisionModel or of a whole CLIPModel (nested under vision_config)."""
    from optimum.utils.normalized_config import NormalizedVisionConfig

    nested = clip.get("vision_config") or clip
    if not isinstance(nested, Mapping):
        raise InputError(f"{where}: vision_config is {nested!r} in its config.json, wanted an object {{…}}")
    kind = nested.get("model_type", clip.get("model_type"))
    if kind not in ("clip", "clip_vision_model"):
        wanted = "clip or clip_vision_model"
        raise InputError(
            f"{where} is of model_type {kind!r}, wanted {wanted}: give its folder, --vision-tower DIR"
        )
    values = CLIP_DEFAULTS | stated(nested)
    for key, default in CLIP_DEFAULTS.items():
        if type(default) is int:
            count(values, key, where)
    positive(values, "layer_norm_eps", where)
    vision = NormalizedVisionConfig(SimpleNamespace(**values))

    if vision.num_channels != 3 or vision.hidden_act not in ("quick_gelu", "gelu"):
        got = f"{vision.num_channels} channels and {vision.hidden_act!r}"
        raise InputError(f"{where} has {got}; the graph implements 3 channels with 'quick_gelu' or 'gelu'")
    if vision.hidden_size % vision.num_attention_heads or vision.image_size % vision.patch_size:
        raise InputError(
            f"{where}: its width is no multiple of its heads, or its image size none of its patch"
        )
    return VisionConfig(
        hidden=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        patch=vision.patch_size,
        native_size=vision.image_size,
        norm_eps=float(vision.layer_norm_eps),
        activation=vision.hidden_act,
    )


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with a value; a null means the default."""
    return {key: value for key, value in config.items() if value is not None}


def count(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A whole number above 0."""
    value = stated(config).get(key, default)
    if value is None:
        raise InputError(f"{where}: its config.json lacks {key}: copy it again from where it was published")
    if type(value) is not int or value < 1:
        raise InputError(f"{where}: {key} is {value!r} in its config.json, wanted a whole number above 0")
    return value


def positive(config: Mapping[str, Any], key: str, where: str) -> float:
    value = config[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"{where}: {key} is {value!r} in its config.json, wanted a number above 0")
    return float(value)


def require_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Each key has the one value that the graphs implement, or is absent."""
    for key, wanted in fixed.items():
        if stated(config).get(key, wanted) != wanted:
            got = config[key]
            raise InputError(
                f"{where}: {key} is {got!r} in its config.json; the export implements {wanted!r} only"
            )
