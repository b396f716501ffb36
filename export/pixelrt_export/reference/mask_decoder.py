"""PixelLM's light pixel decoder: a two-way transformer a scale; the coarse mask re-weights finer features.

Letters: N targets, D decoder width, h x w feature grid, T tokens (iou + 4 mask tokens + 1 prompt = 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of the pixel decoder; the defaults are what the original hard-codes."""

    width: int = 256
    heads: int = 8
    mlp: int = 2048
    depth: int = 2
    scales: int = 2
    mask_channels: int = 16


class LayerNorm2d(nn.Module):
    """Normalises (N, C, h, w) over C."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, (x.shape[1],), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, shrink: int = 1):
        super().__init__()
        inner, self.heads = width // shrink, heads
        self.q_proj, self.k_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.v_proj, self.out_proj = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BlockMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    def __init__(self, sizes: DecoderSizes, first: bool):
        super().__init__()
        width, heads, self.first = sizes.width, sizes.heads, first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = BlockMlp(width, sizes.mlp)
        self.norm3, self.norm4 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, 2)

    def forward(self, q: Tensor, k: Tensor, q_pe: Tensor, k_pe: Tensor) -> tuple[Tensor, Tensor]:
        """q (N, T, D) tokens, k (N, hw, D) image -> both updated. The first self-attention: no residual."""
        q = self.self_attn(q, q, q) if self.first else q + self.self_attn(q + q_pe, q + q_pe, q)
        q, placed = self.norm1(q), k + k_pe
        q = self.norm2(q + self.cross_attn_token_to_image(q + q_pe, placed, k))
        q = self.norm3(q + self.mlp(q))
        return q, self.norm4(k + self.cross_attn_image_to_token(placed, q + q_pe, q))


class TwoWayTransformer(nn.Module):
    def __init__(self, sizes: DecoderSizes):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(sizes, first=i == 0) for i in range(sizes.depth))
        self.final_attn_token_to_image = Attention(sizes.width, sizes.heads, 2)
        self.norm_final_attn = nn.LayerNorm(sizes.width)

    def forward(self, source: Tensor, k_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """source (N, D, h, w), k_pe (1, D, h, w), tokens (N, T, D) -> tokens (N, T, D), image (N, hw, D)."""
        k, k_pe, q = source.flatten(2).transpose(1, 2), k_pe.flatten(2).transpose(1, 2), tokens
        for layer in self.layers:
            q, k = layer(q, k, tokens, k_pe)
        return self.norm_final_attn(q + self.final_attn_token_to_image(q + tokens, k + k_pe, k)), k


class GaussianPositions(nn.Module):
    """pe(x, y) = (sin v, cos v), v = 2 pi (2 c - 1) G at the cell centres c in 0..1."""

    def __init__(self, half: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, half))

    def forward(self, height: int, width: int) -> Tensor:
        """-> (1, D, height, width)"""
        matrix = self.positional_encoding_gaussian_matrix
        y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        angles = 2 * math.pi * ((2 * centres - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Only `no_mask_embed` and `pe_layer` take part; the rest is stored because the original stores it."""

    def __init__(self, sizes: DecoderSizes):
        super().__init__()
        width, inner = sizes.width, sizes.mask_channels
        self.pe_layer = GaussianPositions(width // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, inner // 4, 2, 2),
            LayerNorm2d(inner // 4),
            nn.GELU(),
            nn.Conv2d(inner // 4, inner, 2, 2),
            LayerNorm2d(inner),
            nn.GELU(),
            nn.Conv2d(inner, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)


class HeadMlp(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


def upscale(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(width, out, 2, 2), LayerNorm2d(out), nn.GELU())


class MaskDecoder(nn.Module):
    def __init__(self, sizes: DecoderSizes):
        super().__init__()
        width = sizes.width
        self.transformer = nn.ModuleList(TwoWayTransformer(sizes) for _ in range(sizes.scales))
        self.iou_token, self.mask_tokens = nn.Embedding(1, width), nn.Embedding(4, width)
        self.output_upscaling = upscale(width, width // 8)
        self.upsample_2x = upscale(width, width)
        self.pe1 = GaussianPositions(width // 2)
        self.output_hypernetworks_mlps = nn.ModuleList(
            HeadMlp(width, width // 8) for _ in range(4)
        )  # 1..3 idle
        self.iou_prediction_head = HeadMlp(width, 4)  # idle: the mask score is computed from the mask itself
        self.level_embed = nn.Embedding(sizes.scales, width)

    def source(self, level: int, features: Tensor) -> Tensor:
        """What a level attends to, once per image: (B, D, h, w) -> the same, or doubled above level 0."""
        return self.upsample_2x(features) if level else features

    def forward(
        self,
        level: int,
        source: Tensor,
        prompt: Tensor,
        prompt_encoder: PromptEncoder,
        coarser: Tensor | None = None,
    ) -> Tensor:
        """source (N, D, h, w), prompt (N, D), coarser (N, 1, h, w) logits -> logits (N, 1, 2h, 2w)."""
        fixed = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([fixed.expand(len(prompt), -1, -1), prompt[:, None]], dim=1)
        tokens = tokens + self.level_embed.weight[level]
        height, width = source.shape[-2:]
        positions = (self.pe1 if level else prompt_encoder.pe_layer)(height, width)
        if coarser is not None:
            source = (torch.sigmoid(coarser) + 1) * source
        source = source + prompt_encoder.no_mask_embed.weight[..., None, None]
        tokens, image = self.transformer[level](source, positions, tokens)
        image = self.output_upscaling(image.transpose(1, 2).unflatten(-1, (height, width)))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("nc,nchw->nhw", weights, image)[:, None]
