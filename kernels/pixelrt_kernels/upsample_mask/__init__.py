"""Low-resolution mask logits to pixel masks and label maps at the original picture size."""

from .classes import class_bands, class_map
from .labels import label_map
from .reference import upsample_mask

__all__ = ["class_bands", "class_map", "label_map", "upsample_mask"]
