"""PSALM's pixel decoder: deformable attention over three levels and one step up (specification section 8).

Letters: B images, D width, N positions of the three levels (coarse first), n_l = side_l^2 of level l, M heads,
L levels, P points, h = w positions a side of the mask features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.graphs.deform_decoder import sine_positions
from pixelrt_export.psalm_config import GROUPS, LEVELS, POINTS, PsalmConfig


def deform_attn(value: Tensor, shapes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, zeros outside.

    value (B, N, M, d), shapes: h, w of each level, places (B, Q, M, L, P, 2) as x, y in 0..1 of each level,
    weights (B, Q, M, L, P) -> (B, Q, M d)
    """
    batch, _, heads, _ = value.shape
    parts = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=-1)
    grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (B M, Q, L, P, 2)
    samples = [
        F.grid_sample(part.unflatten(-1, shape), grid[:, :, level], align_corners=False)
        for level, (part, shape) in enumerate(zip(parts, shapes, strict=True))
    ]  # L x (B M, d, Q, P)
    weights = weights.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]  # (B M, 1, Q, L P)
    mixed = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B M, d, Q)
    return mixed.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


class DeformableAttention(nn.Module):
    def __init__(self, config: PsalmConfig):
        super().__init__()
        self.heads, self.shapes = config.heads, [(side, side) for side in config.levels]
        samples = config.heads * LEVELS * POINTS
        self.sampling_offsets = nn.Linear(config.width, 2 * samples)
        self.attention_weights = nn.Linear(config.width, samples)
        self.value_proj = nn.Linear(config.width, config.width)
        self.output_proj = nn.Linear(config.width, config.width)
        self.register_buffer("scale", torch.tensor(config.levels).view(LEVELS, 1, 1), persistent=False)

    @torch.no_grad()
    def reset(self) -> None:
        """As Deformable DETR starts: each head looks in a direction of its own, further with each point."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)
        ways = (ways / ways.abs().amax(-1, keepdim=True))[:, None, None]
        steps = torch.arange(1, POINTS + 1)[:, None]
        self.sampling_offsets.bias.copy_((ways * steps).expand(-1, LEVELS, -1, -1).flatten())

    def forward(self, x: Tensor, placed: Tensor, centres: Tensor) -> Tensor:
        """x, placed = x + positions (B, N, D), centres (N, 2) -> (B, N, D)"""
        value = self.value_proj(x).unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(placed).unflatten(-1, (self.heads, LEVELS, POINTS, 2))
        places = centres[:, None, None, None] + offsets / self.scale
        weights = self.attention_weights(placed).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (LEVELS, POINTS))
        return self.output_proj(deform_attn(value, self.shapes, places, weights))


class EncoderLayer(nn.Module):
    def __init__(self, config: PsalmConfig, mlp: int):
        super().__init__()
        self.self_attn = DeformableAttention(config)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.linear1, self.linear2 = nn.Linear(config.width, mlp), nn.Linear(mlp, config.width)

    def forward(self, x: Tensor, positions: Tensor, centres: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x + positions, centres))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    def __init__(self, config: PsalmConfig, mlp: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, mlp) for _ in range(config.encoder_layers))


class Transformer(nn.Module):
    def __init__(self, config: PsalmConfig, mlp: int):
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(LEVELS, config.width))
        self.encoder = Encoder(config, mlp)


def conv_norm(inputs: int, width: int, kernel: int = 1, relu: bool = True) -> nn.Sequential:
    parts = [nn.Conv2d(inputs, width, kernel, padding=kernel // 2), nn.GroupNorm(GROUPS, width)]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


class PixelDecoder(nn.Module):
    """`pixel_decoder.*`"""

    def __init__(self, config: PsalmConfig, mlp: int):
        super().__init__()
        self.sides = config.levels
        coarse = [stage.width for stage in config.swin[:0:-1]]
        self.input_proj = nn.ModuleList(conv_norm(inputs, config.width, relu=False) for inputs in coarse)
        self.transformer = Transformer(config, mlp)
        self.adapter_1 = conv_norm(config.swin[0].width, config.width)
        self.layer_1 = conv_norm(config.width, config.width, 3)
        self.mask_features = nn.Conv2d(config.width, config.width, 1)
        for i, side in enumerate(self.sides):
            positions = torch.from_numpy(sine_positions(side, config.width))
            self.register_buffer(f"positions_{i}", positions, persistent=False)  # (1, n_l, D)
        centres = [centres_of(side) for side in self.sides]
        self.register_buffer("centres", torch.cat(centres), persistent=False)  # (N, 2)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Swin's four stages (B, C, G, G) -> mask features (B, D, h, w), three levels (B, D, side, side)."""
        projected = [proj(x).flatten(2).mT for proj, x in zip(self.input_proj, stages[:0:-1], strict=True)]
        embed = self.transformer.level_embed
        positions = [getattr(self, f"positions_{i}") + embed[i] for i in range(LEVELS)]
        x, placed = torch.cat(projected, dim=1), torch.cat(positions, dim=1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, placed, self.centres)
        areas = [side * side for side in self.sides]
        levels = [
            part.mT.unflatten(-1, (side, side))
            for part, side in zip(x.split(areas, dim=1), self.sides, strict=True)
        ]
        fine = self.adapter_1(stages[0])
        coarse = F.interpolate(levels[-1], size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(self.layer_1(fine + coarse)), levels


def centres_of(side: int) -> Tensor:
    """(x, y) of each position, 0..1: (side^2, 2)"""
    along = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)
