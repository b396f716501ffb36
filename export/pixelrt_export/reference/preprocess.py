"""Image to network input, and mask logits back to image pixels, as PixelLM does both."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = np.array(
    [123.675, 116.28, 103.53], np.float32
)  # on 0..255, the mask branch's constants and not CLIP's
STD = np.array([58.395, 57.12, 57.375], np.float32)


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(h', w') with the longer one equal to `side`, each rounded half up."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (h', w', 3): PIL's antialiased bilinear."""
    height, width = fitted_size(*image.shape[:2], side)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalise_and_pad(resized: np.ndarray, side: int) -> np.ndarray:
    """uint8 (h', w', 3) -> float32 (3, side, side), zero on the right and below AFTER normalisation."""
    out = np.zeros((side, side, 3), np.float32)
    out[: resized.shape[0], : resized.shape[1]] = (resized.astype(np.float32) - MEAN) / STD
    return np.ascontiguousarray(out.transpose(2, 0, 1))


def patch_validity(height: int, width: int, step: int, grid: int) -> np.ndarray:
    """valid[r * grid + c] = step*r < height and step*c < width   (the pixel mask, sampled nearest)"""
    at = np.arange(grid) * step
    return ((at[:, None] < height) & (at[None, :] < width)).ravel()


def preprocess(image: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (H, W, 3) -> pixels float32 (3, side, side) and (h', w')."""
    resized = fit(image, side)
    return normalise_and_pad(resized, side), resized.shape[:2]


def postprocess(low_res: Tensor, fitted: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """logits (N, 1, m, m) -> (N, H, W): to the padded square, crop the padding off, to the original size."""
    if not len(low_res):
        return low_res.new_zeros((0, *original))
    side = max(fitted)
    full = F.interpolate(low_res.float(), size=(side, side), mode="bilinear", align_corners=False)
    full = full[..., : fitted[0], : fitted[1]]
    return F.interpolate(full, size=original, mode="bilinear", align_corners=False)[:, 0]


def mask_scores(logits: Tensor) -> Tensor:
    """Mean probability over a mask's positive pixels: (N, H, W) -> (N,)."""
    positive = logits > 0
    return (logits.sigmoid() * positive).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)


def to_batch(pixels: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(pixels)[None].to(like.device, like.dtype)
