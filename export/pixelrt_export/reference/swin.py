"""Swin's vision tower (specification section 2), with the released names below `model.vision_tower`.

Letters: B images, per stage: G positions a side, C channels, w window side, k windows a side, so that w k >= G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.graphs.swin import relative_index, shift_mask
from pixelrt_export.psalm_config import PsalmConfig, SwinStage


class WindowAttention(nn.Module):
    def __init__(self, stage: SwinStage):
        super().__init__()
        self.stage = stage
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * stage.window - 1) ** 2, stage.heads)
        )
        self.qkv = nn.Linear(stage.width, 3 * stage.width)
        self.proj = nn.Linear(stage.width, stage.width)
        self.register_buffer("index", torch.from_numpy(relative_index(stage.window)), persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """x (B, k k, w w, C), apart (k k, 1, w w, w w) is added to the scores -> (B, k k, w w, C)"""
        qkv = self.qkv(x).unflatten(-1, (3, self.stage.heads, -1))
        q, k, v = qkv.movedim(-3, 0).transpose(-3, -2).unbind(0)  # (B, k k, heads, w w, d)
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if apart is not None:
            scores = scores + apart
        return self.proj((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm1(x)) within windows, then x + mlp(norm2(x)); every other block shifts its windows."""

    def __init__(self, stage: SwinStage, mlp: int, shifted: bool):
        super().__init__()
        self.window, self.windows = stage.window, -(-stage.grid // stage.window)
        self.shift = stage.window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(stage.width), nn.LayerNorm(stage.width)
        self.attn, self.mlp = WindowAttention(stage), Mlp(stage.width, mlp)
        apart = torch.from_numpy(shift_mask(self.window, self.windows, self.shift)) if shifted else None
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, G, C) -> the same"""
        x = x + self.windowed(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def windowed(self, x: Tensor) -> Tensor:
        """Padding is zeros put in after the norm; it is looked at like any other position."""
        grid, w, k = x.shape[1], self.window, self.windows
        x = F.pad(x, (0, 0, 0, w * k - grid, 0, w * k - grid))
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.unflatten(2, (k, w)).unflatten(1, (k, w)).transpose(2, 3)  # (B, k, k, w, w, C)
        x = self.attn(x.flatten(3, 4).flatten(1, 2), self.apart)
        x = x.unflatten(2, (w, w)).unflatten(1, (k, k)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x.roll((self.shift, self.shift), (1, 2)) if self.shift else x
        return x[:, :grid, :grid]


class Merge(nn.Module):
    """Four neighbours become one position, down before right: (B, G, G, C) -> (B, G / 2, G / 2, C of the next)."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class Stage(nn.Module):
    def __init__(self, stage: SwinStage, mlp: int, following: SwinStage | None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(stage, mlp, bool(i % 2)) for i in range(stage.depth))
        self.downsample = Merge(stage.width, following.width) if following else None


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, G, G, C)"""
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class SwinTower(nn.Module):
    def __init__(self, config: PsalmConfig, mlps: tuple[int, ...]):
        """mlps: width of each stage's MLPs."""
        super().__init__()
        self.patch_embed = PatchEmbed(config.swin[0].width, config.patch)
        following = (*config.swin[1:], None)
        self.layers = nn.ModuleList(map(Stage, config.swin, mlps, following))
        for i, stage in enumerate(config.swin):
            setattr(self, f"norm{i}", nn.LayerNorm(stage.width))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the four stages after their norms, (B, C, G, G) each."""
        x, stages = self.patch_embed(pixels), []
        for i, layer in enumerate(self.layers):
            for block in layer.blocks:
                x = block(x)
            stages.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
            x = layer.downsample(x) if layer.downsample is not None else x
        return stages
