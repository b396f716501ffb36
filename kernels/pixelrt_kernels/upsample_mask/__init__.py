"""Low-resolution mask logits to pixel masks at the original picture size."""

from .reference import upsample_mask

__all__ = ["upsample_mask"]
