"""PixelLM's two steps between scales: features weighted by the coarser mask, and the masks' weighted sum."""
