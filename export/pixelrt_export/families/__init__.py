"""One module a model family, with `sources(checkpoint, vision_tower)` and `write_bundle(checkpoint, sink)`; the
registry below names them."""

from __future__ import annotations

import importlib
from types import ModuleType

from pixelrt.errors import InputError

# `model_type` of a checkpoint's config.json -> module.
FAMILIES = {"llava": "pixelrt_export.families.pixellm", "llava_phi": "pixelrt_export.families.psalm"}


def family_of(model_type: str) -> ModuleType:
    """The module that exports checkpoints of this model type."""
    if model_type not in FAMILIES:
        raise InputError(
            f"config.json says model_type {model_type!r}; pixelrt exports {', '.join(FAMILIES)} "
            "(PixelLM is llava, PSALM llava_phi). Give the folder of such a checkpoint."
        )
    return importlib.import_module(FAMILIES[model_type])
