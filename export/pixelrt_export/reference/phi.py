"""Phi's blocks as in transformers 4.36: attention and MLP side by side behind one LayerNorm, biases everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.reference.llama import rotary, rotate


class Attention(nn.Module):
    """query_key_value holds q, k, v of head 0, then of head 1, and so on: rows (heads, 3, d)."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.heads, self.turning = config.heads, config.rotary_dims
        self.query_key_value = nn.Linear(config.hidden, 3 * config.hidden)
        self.dense = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        """x (B, S, H), allowed (B, 1, S, S) bool -> (B, S, H)"""
        q, k, v = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        q, k = (self.turned(part, angles) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.dense(mixed.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary positions on the first dimensions of each head."""
        return torch.cat([rotate(x[..., : self.turning], *angles), x[..., self.turning :]], dim=-1)


class Mlp(nn.Module):
    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden, config.intermediate)
        self.fc2 = nn.Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Mlp(config)
        self.input_layernorm = nn.LayerNorm(config.hidden, config.norm_eps)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        y = self.input_layernorm(x)
        return x + self.self_attn(y, angles, allowed) + self.mlp(y)


def run_layers(
    layers: nn.ModuleList,
    norm: nn.Module,
    config: LanguageConfig,
    x: Tensor,
    positions: Tensor,
    allowed: Tensor,
) -> Tensor:
    """x (B, S, H), positions (B, S), allowed (B, 1, S, S) bool -> states after the final norm (B, S, H)"""
    cos, sin = rotary(positions, config.rotary_dims, config.rope_theta)
    for layer in layers:
        x = layer(x, (cos, sin), allowed)
    return norm(x)
