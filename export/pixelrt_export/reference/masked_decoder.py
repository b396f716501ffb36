"""PSALM's predictor: mask queries look at the image through their own masks (specification section 8b).

Letters: B images, N prompts about them, Q queries, K conditions, D width, n_l positions of level l = i % 3 of
layer i, h x w positions of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.graphs.deform_decoder import sine_positions
from pixelrt_export.psalm_config import LEVELS, PsalmConfig
from pixelrt_export.psalm_tensors import PROJECTIONS


@dataclass
class Prediction:
    masks: Tensor  # (N, Q, h, w) logits
    states: Tensor  # (N, Q, D) after the norm; `Predictor.scores` reads them


class Attention(nn.Module):
    """nn.MultiheadAttention's parameters, with the projections apart so that keys can be shared by prompts."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor, part: int) -> Tensor:
        """Query (0), key (1) or value (2): (B, n, D) -> (B, heads, n, d)"""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, open_: Tensor | None = None) -> Tensor:
        """open_ (N, Q, n) bool: where a query may look -> (N, Q, D)"""
        mask = None if open_ is None else open_[:, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.multihead_attn, self.norm = Attention(width, heads), nn.LayerNorm(width)


class SelfAttentionLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn, self.norm = Attention(width, heads), nn.LayerNorm(width)


class FfnLayer(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class Mlp(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i + 1 < len(self.layers) else layer(x)
        return x


class Predictor(nn.Module):
    """`predictor.*`; query_feat and SEG_query_embed are stored and unused, as in the release."""

    def __init__(self, config: PsalmConfig, mlp: int):
        super().__init__()
        width, heads, count = config.width, config.heads, config.decoder_layers
        self.sides = config.levels
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(width, heads) for _ in range(count)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(width, heads) for _ in range(count)
        )
        self.transformer_ffn_layers = nn.ModuleList(FfnLayer(width, mlp) for _ in range(count))
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat, self.query_embed = (
            nn.Embedding(config.queries, width),
            nn.Embedding(config.queries, width),
        )
        self.SEG_query_embed = nn.Embedding(config.queries + 1, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.mask_embed = Mlp(width, 3)
        for name in PROJECTIONS:
            setattr(self, name, Mlp(width, 2))
        for i, side in enumerate(self.sides):
            positions = torch.from_numpy(sine_positions(side, width))
            self.register_buffer(f"positions_{i}", positions, persistent=False)  # (1, n_l, D)

    def keys(self, levels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, from levels (B, D, side, side): 2 x (B, heads, n_l, d). They depend on the image alone."""
        rows = [x.flatten(2).mT + self.level_embed.weight[i] for i, x in enumerate(levels)]
        pairs = []
        for i, layer in enumerate(self.transformer_cross_attention_layers):
            x, level = rows[i % LEVELS], i % LEVELS
            placed = x + getattr(self, f"positions_{level}")
            pairs.append((layer.multihead_attn.project(placed, 1), layer.multihead_attn.project(x, 2)))
        return pairs

    def forward(
        self,
        queries: Tensor,
        keys: list[tuple[Tensor, Tensor]],
        features: Tensor,
        image: Tensor,
        places: Tensor | None = None,
        windows: list[Tensor] | None = None,
    ) -> list[Prediction]:
        """Before layer 0 and after each layer.

        queries (N, Q, D), features: mask features (B, D, h, w), image (N,): which of the B a prompt is about.
        places (N, Q, D): instead of query_embed. windows: L x (N, Q, n_l) bool, where to look instead of through
        the queries' own masks.
        """
        x, features = queries, features[image]
        places = self.query_embed.weight if places is None else places
        predictions = [self.predict(x, features)]
        for i, cross in enumerate(self.transformer_cross_attention_layers):
            level = i % LEVELS
            open_ = self.window(predictions[-1].masks, level) if windows is None else windows[level]
            k, v = (part[image] for part in keys[i])
            x = cross.norm(
                x + cross.multihead_attn.mix(cross.multihead_attn.project(x + places, 0), k, v, open_)
            )
            own = self.transformer_self_attention_layers[i]
            q, k = (own.self_attn.project(x + places, part) for part in (0, 1))
            x = own.norm(x + own.self_attn.mix(q, k, own.self_attn.project(x, 2)))
            x = self.transformer_ffn_layers[i](x)
            predictions.append(self.predict(x, features))
        return predictions

    def predict(self, x: Tensor, features: Tensor) -> Prediction:
        states = self.decoder_norm(x)
        return Prediction(
            (self.mask_embed(states) @ features.flatten(2)).unflatten(-1, features.shape[2:]), states
        )

    def window(self, masks: Tensor, level: int) -> Tensor:
        """(N, Q, n_l): inside the mask at that level's resolution; everywhere for a mask that is empty there."""
        side = self.sides[level]
        small = F.interpolate(masks.detach(), size=(side, side), mode="bilinear", align_corners=False)
        inside = small.flatten(2) >= 0
        return inside | ~inside.any(-1, keepdim=True)

    def scores(self, states: Tensor, conditions: Tensor, kind: Tensor) -> Tensor:
        """states (N, Q, D), conditions (N, K, D), kind (N,): index of PROJECTIONS -> (N, Q, K)"""
        projected = torch.stack([getattr(self, name)(states) for name in PROJECTIONS])
        return projected[kind, torch.arange(len(kind), device=kind.device)] @ conditions.mT
