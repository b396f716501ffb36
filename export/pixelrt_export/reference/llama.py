"""LLaMA decoder layers with grouped key/value heads: rotate-half rotary positions, RMSNorm, SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]  # per layer: keys, values (B, kv_heads, S, head_dim)


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of the language model; field names are those of a LLaMA config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def read(cls, config: dict) -> LlamaSizes:
        config = {"num_key_value_heads": config["num_attention_heads"]} | config
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/head_dim), halves alike: (B, T) -> 2 x (B, 1, T, head_dim)."""
    even = torch.arange(0, head_dim, 2, device=positions.device).float()
    angles = positions[..., None].float() * theta ** (-even / head_dim)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        width, head_dim = sizes.hidden_size, sizes.head_dim
        self.head_dim, self.repeat = head_dim, sizes.num_attention_heads // sizes.num_key_value_heads
        self.q_proj = nn.Linear(width, sizes.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, sizes.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, sizes.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(sizes.num_attention_heads * head_dim, width, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], allowed: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, H), allowed (B, 1, T, S) bool -> (B, T, H) and grown keys, values (B, kv, S, head_dim)."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *angles), rotate(k, *angles)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        present = (k, v)
        if self.repeat > 1:
            k, v = k.repeat_interleave(self.repeat, dim=1), v.repeat_interleave(self.repeat, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), present


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes.hidden_size, sizes.intermediate_size)
        self.input_layernorm = RmsNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(sizes.hidden_size, sizes.rms_norm_eps)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], allowed: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, present = self.self_attn(self.input_layernorm(x), angles, allowed, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present


def run_layers(
    layers: nn.ModuleList,
    norm: RmsNorm,
    sizes: LlamaSizes,
    x: Tensor,
    positions: Tensor,
    allowed: Tensor,
    cache: Cache | None = None,
) -> tuple[Tensor, Cache]:
    """Hidden states after the final norm (B, T, H) and the cache; allowed (B, 1, T, S) with S = past + T."""
    angles = tuple(a.to(x.dtype) for a in rotary(positions, sizes.head_dim, sizes.rope_theta))
    grown: Cache = []
    for index, layer in enumerate(layers):
        x, present = layer(x, angles, allowed, cache[index] if cache else None)
        grown.append(present)
    return norm(x), grown
