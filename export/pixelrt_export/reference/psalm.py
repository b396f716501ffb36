"""PSALM in plain torch: module tree and state-dict names of the release, sizes from config.json and tensors.

Letters: B images, N prompts about them, S tokens, T = t * t image tokens, H width of the language model, Q mask
queries, K conditions, D decoder width, h x w a quarter of the input's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.psalm_config import PsalmConfig
from pixelrt_export.psalm_tensors import DEAD_TENSORS, PROJECTORS, dead_tensors
from pixelrt_export.reference.deform_attn import PixelDecoder
from pixelrt_export.reference.masked_decoder import Predictor
from pixelrt_export.reference.phi import Layer, run_layers
from pixelrt_export.reference.swin import SwinTower


@dataclass(frozen=True)
class Widths:
    """Of inner layers: they stand in no config.json."""

    swin: tuple[int, ...]  # MLPs of each stage
    projector: int
    encoder: int  # MLPs of the pixel decoder
    predictor: int  # MLPs

    @classmethod
    def read(cls, shapes: Mapping[str, tuple[int, ...]]) -> Widths:
        def rows(name: str) -> int:
            return shapes[f"{name}.weight"][0]

        return cls(
            tuple(rows(f"model.vision_tower.layers.{i}.blocks.0.mlp.fc1") for i in range(4)),
            rows("model.mm_projector.layer1.0.conv1"),
            rows("pixel_decoder.transformer.encoder.layers.0.linear1"),
            rows("predictor.transformer_ffn_layers.0.linear1"),
        )


@dataclass
class ImageFeatures:
    tokens: Tensor  # (B, T, H)
    mask_features: Tensor  # (B, D, h, w)
    levels: list[Tensor]  # 3 x (B, D, side, side), coarse first
    stages: list[Tensor]  # Swin's, (B, C, G, G), fine first


class ProjectorBlock(nn.Module):
    """A residual block of stride 2 whose second convolution runs twice: so it was trained."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.bn2(y) + self.downsample(x))


class Projector(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.layer1 = nn.Sequential(ProjectorBlock(inputs, width))
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Swin's last stage (B, C, G, G) -> (B, T, H)"""
        return self.fc(self.layer1(x).flatten(2).mT)


class Body(nn.Module):
    """Everything the released checkpoint stores under `model.`."""

    def __init__(self, config: PsalmConfig, widths: Widths):
        super().__init__()
        language = config.language
        self.embed_tokens = nn.Embedding(language.vocab, language.hidden)
        self.layers = nn.ModuleList(Layer(language) for _ in range(language.layers))
        self.final_layernorm = nn.LayerNorm(language.hidden, language.norm_eps)
        self.vision_tower = SwinTower(config, widths.swin)
        self.mm_projector = Projector(config.swin[-1].width, widths.projector, language.hidden)


class Psalm(nn.Module):
    def __init__(self, config: PsalmConfig, widths: Widths):
        super().__init__()
        self.config = config
        hidden, width = config.language.hidden, config.width
        self.model = Body(config, widths)
        self.lm_head = nn.Linear(hidden, config.language.vocab, bias=False)  # stored, never used
        self.seg_query = nn.Parameter(torch.zeros(config.queries, hidden))
        for name in ("seg_query_projector", *PROJECTORS):
            setattr(self, name, nn.Linear(hidden, width))
        self.pixel_decoder = PixelDecoder(config, widths.encoder)
        self.predictor = Predictor(config, widths.predictor)

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray | Tensor]) -> Psalm:
        """From config.json and all tensors of a checkpoint, in float32; dead ones may be there or not."""
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        sizes = PsalmConfig.read(config, shapes)
        net = cls(sizes, Widths.read(shapes))
        state, dead = net.state_dict(), dead_tensors(sizes, shapes)
        for key, value in tensors.items():
            if key in state:
                state[key] = torch.as_tensor(value).to(state[key].dtype)
            elif not any(rule.matches(key, shapes[key]) for rule in dead):
                raise KeyError(f"{key} belongs to no part of PSALM")
        missing = [
            key
            for key in state.keys() - tensors.keys()
            if not any(rule.matches(key, ()) for rule in DEAD_TENSORS)
        ]
        if missing:
            raise KeyError(f"the checkpoint lacks {', '.join(sorted(missing))}")
        net.load_state_dict(state)
        return net.eval().requires_grad_(False)

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, size, size) -> all that depends on the image alone."""
        stages = self.model.vision_tower(pixels)
        mask_features, levels = self.pixel_decoder(stages)
        return ImageFeatures(self.model.mm_projector(stages[-1]), mask_features, levels, stages)

    def hidden(self, embeds: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """embeds (B, S, H), positions (B, S), allowed (B, 1, S, S) bool -> states after the norm (B, S, H)"""
        model = self.model
        return run_layers(
            model.layers, model.final_layernorm, self.config.language, embeds, positions, allowed
        )

    def conditions(self, pooled: Tensor, kind: Tensor) -> Tensor:
        """Mean states of each condition (N, K, H), kind (N,): index of PROJECTORS -> (N, K, D)"""
        projected = torch.stack([getattr(self, name)(pooled) for name in PROJECTORS])
        return projected[kind, torch.arange(len(kind), device=kind.device)]
