"""One module a model family, with `write_bundle(checkpoint, sink)`; the registry below names them."""

from __future__ import annotations

import importlib
from types import ModuleType

from pixelrt.errors import InputError

# `model_type` of a checkpoint's config.json -> module.
FAMILIES = {"llava": "pixelrt_export.families.pixellm"}


def family_of(model_type: str) -> ModuleType:
    """The module that exports checkpoints of this model type."""
    if model_type not in FAMILIES:
        raise InputError(
            f"config.json says model_type {model_type!r}; pixelrt exports {', '.join(FAMILIES)} "
            "(PixelLM is llava). Give the folder of a PixelLM checkpoint."
        )
    return importlib.import_module(FAMILIES[model_type])
