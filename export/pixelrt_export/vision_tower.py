"""The CLIP folder that belongs to a PixelLM checkpoint: where it is, and which of its tensors are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pixelrt.errors import InputError

from pixelrt_export.checkpoint import Checkpoint, DeadTensor
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.shards import Shape


def find_vision_tower(checkpoint: Path, config: Mapping[str, Any], flag: Path | None = None) -> Path:
    """The flag if given; else, in or beside the checkpoint, `clip` or what the config names.

    Nothing is fetched: PixelLM's own files do not hold CLIP, and which copy to trust is the user's decision.
    """
    if flag is not None:
        if not (flag / "config.json").is_file():
            raise InputError(
                f"--vision-tower {flag} has no config.json: give the folder of a Hugging Face CLIP checkpoint"
            )
        return flag
    named = config.get("vision_tower") or config.get("mm_vision_tower") or ""
    if not isinstance(named, str):
        raise InputError(
            f"{checkpoint}: vision_tower is {named!r} in its config.json: give --vision-tower DIR"
        )
    last = PurePosixPath(named).name
    folder = checkpoint.resolve()
    candidates = [folder / "clip", folder.parent / "clip"]
    if last:
        # An absolute path is one on the machine that trained; a relative one may mean a folder here.
        near = [] if PurePosixPath(named).is_absolute() else [folder / named]
        candidates = [*near, *candidates, folder / last, folder.parent / last]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    source = f"download {_hub_id(named)}" if last else "download the CLIP it was trained with"
    raise InputError(
        f"{checkpoint} needs its CLIP vision tower, and none is in or beside it: {source} and give its "
        f"folder with --vision-tower DIR, or name it {folder.parent / 'clip'}"
    )


def open_vision_tower(folder: Path) -> Checkpoint:
    """A CLIPModel's or CLIPVisionModel's folder, tensors named as a CLIPModel's: `vision_model.…`.

    transformers 5 saves a CLIPVisionModel without that prefix.
    """
    tower = Checkpoint.open(folder)
    names = tower.shapes()
    bare = "embeddings.class_embedding" in names and not any("vision_model." in name for name in names)
    return tower.with_prefix("vision_model.") if bare else tower


def _hub_id(named: str) -> str:
    path = PurePosixPath(named)
    if path.is_absolute() or len(path.parts) != 2:
        return f"openai/{path.name}" if path.name.startswith("clip-vit") else path.name
    return named


DEAD_VISION_TENSORS = (
    DeadTensor.named("vision_model.embeddings.position_ids", "a buffer: 0, 1, 2 …"),
    DeadTensor.named("vision_model.post_layernorm.*", "PixelLM reads hidden states before it"),
    DeadTensor.named(
        "vision_model.encoder.layers.*", "a layer after the last hidden state that PixelLM reads"
    ),
    DeadTensor.named("text_model.*", "CLIP's text tower"),
    DeadTensor.named("visual_projection.weight", "joins CLIP's two towers"),
    DeadTensor.named("text_projection.weight", "joins CLIP's two towers"),
    DeadTensor.named("logit_scale", "joins CLIP's two towers"),
)


def vision_tensors(config: PixelLMConfig) -> dict[str, Shape]:
    """Name -> shape of all that the encoder graph reads: the embeddings, and layers up to the deepest."""
    vision = config.vision
    width, prefix = vision.hidden, "vision_model"
    shapes: dict[str, Shape] = {
        f"{prefix}.embeddings.class_embedding": (width,),
        f"{prefix}.embeddings.patch_embedding.weight": (width, 3, vision.patch, vision.patch),
        f"{prefix}.embeddings.position_embedding.weight": (vision.native_positions, width),
        f"{prefix}.pre_layrnorm.weight": (width,),  # (sic)
        f"{prefix}.pre_layrnorm.bias": (width,),
    }
    linears = {f"self_attn.{name}_proj": (width, width) for name in "qkv"}
    linears |= {
        "self_attn.out_proj": (width, width),
        "mlp.fc1": (vision.mlp, width),
        "mlp.fc2": (width, vision.mlp),
    }
    for i in range(max(config.deep_layers, config.shallow_layers)):
        layer = f"{prefix}.encoder.layers.{i}"
        for name, shape in linears.items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = shape, shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
    return shapes
