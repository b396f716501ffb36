"""CLIP's vision tower as PixelLM runs it: padded patches are no keys, positions are resized its way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of the tower; field names are those of a CLIP vision config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int  # native size of the stored position table, not the size it is run at
    layer_norm_eps: float = 1e-5

    @classmethod
    def read(cls, config: dict) -> ClipSizes:
        config = config.get("vision_config", config)
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """Bilinear resize of a position table (p*p + 1, C) to (grid*grid + 1, C).

    The LAST row is kept apart as the class row and the first p*p rows are the image (CLIP stores the class
    row FIRST): PixelLM was trained with this shift, so it stays.
    """
    native = math.isqrt(len(table) - 1)
    if native == grid:
        return table
    image = table[:-1].float().T.reshape(1, -1, native, native)
    image = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([image[0].flatten(1).T.to(table.dtype), table[-1:]])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, N, C); valid (B, 1, 1, N) bool: keys that may be attended to."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick GELU


class Layer(nn.Module):
    def __init__(self, sizes: ClipSizes):
        super().__init__()
        width, eps = sizes.hidden_size, sizes.layer_norm_eps
        self.self_attn = Attention(width, sizes.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, sizes.intermediate_size)
        self.layer_norm2 = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), valid)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, sizes: ClipSizes):
        super().__init__()
        width, patch = sizes.hidden_size, sizes.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((sizes.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> (B, grid*grid + 1, C), class token first."""
        patches = self.patch_embedding(pixels)
        positions = resized_positions(self.position_embedding.weight, patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + positions


class Encoder(nn.Module):
    def __init__(self, sizes: ClipSizes):
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_hidden_layers))


class VisionTransformer(nn.Module):
    def __init__(self, sizes: ClipSizes):
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(
            sizes.hidden_size, sizes.layer_norm_eps
        )  # (sic): CLIP's own spelling
        self.encoder = Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)  # stored, never used here


class ClipVision(nn.Module):
    """State-dict keys `vision_model.*`, as in a CLIP vision checkpoint."""

    def __init__(self, sizes: ClipSizes):
        super().__init__()
        self.sizes = sizes
        self.vision_model = VisionTransformer(sizes)

    def forward(self, pixels: Tensor, patch_valid: Tensor, select: tuple[int, ...]) -> list[Tensor]:
        """hidden_states[i] without the class token, for each i in `select` (negative: counted from the end).

        pixels (B, 3, S, S); patch_valid (B, grid*grid) bool -> len(select) x (B, grid*grid, C).
        hidden_states[0] is the output of pre_layrnorm; layers behind the last selected one are not run.
        """
        count = len(self.vision_model.encoder.layers) + 1
        wanted = [index % count for index in select]
        valid = F.pad(patch_valid.bool(), (1, 0), value=True)[:, None, None, :]
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))
        states = [x]
        for layer in self.vision_model.encoder.layers[: max(wanted)]:
            x = layer(x, valid)
            states.append(x)
        return [states[index][:, 1:] for index in wanted]
