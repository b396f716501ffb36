"""PixelLM in plain torch: module tree and state-dict names of the releases, sizes from the config.

Letters: H LLM width, C CLIP width, D decoder width, G x G patches, K seg tokens a scale, S scales, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.reference.clip import ClipSizes, ClipVision
from pixelrt_export.reference.llama import Cache, Layer, LlamaSizes, RmsNorm, run_layers
from pixelrt_export.reference.mask_decoder import DecoderSizes, LayerNorm2d, MaskDecoder, PromptEncoder
from pixelrt_export.reference.preprocess import patch_validity

STORED_BUT_COMPUTED = ("rotary_emb.inv_freq", "position_ids")  # buffers old releases store; derived here


@dataclass(frozen=True)
class PixelLMSizes:
    """All sizes. Config keys that a released config lacks take the original's hard-coded value."""

    llama: LlamaSizes
    clip: ClipSizes
    decoder: DecoderSizes
    image_size: int = 448
    deep_layer: int = -2
    shallow_layer: int = -11
    seg_token_num: int = 3

    @classmethod
    def read(cls, config: dict, clip_config: dict) -> PixelLMSizes:
        decoder = DecoderSizes(
            width=config.get("out_dim", 256),
            heads=config.get("mask_decoder_num_heads", 8),
            scales=config.get("image_feature_scale_num", 2),
        )
        return cls(
            LlamaSizes.read(config),
            ClipSizes.read(clip_config),
            decoder,
            image_size=config.get("resize_vision_tower_size", 448),
            deep_layer=config.get("mm_vision_select_layer", -2),
            shallow_layer=config.get("mm_vision_shallow_layer", -11),
            seg_token_num=config.get("seg_token_num", 3),
        )

    @property
    def grid(self) -> int:
        return self.image_size // self.clip.patch_size

    @property
    def token_grid(self) -> int:
        """The LLM sees 2 x 2 patches as one token."""
        return self.grid // 2

    @property
    def seg_tokens(self) -> int:
        return self.seg_token_num * self.decoder.scales


@dataclass
class ImageFeatures:
    deep: Tensor  # (B, G*G, C)
    shallow: Tensor  # (B, G*G, C)
    tokens: Tensor  # (B, token_grid^2, H)
    token_valid: Tensor  # (B, token_grid^2) bool
    projected: tuple[Tensor, Tensor]  # out_mm_projector of deep, shallow: (B, G*G, H)


def projector(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))


class Body(nn.Module):
    """Everything the released checkpoint stores under `model.`."""

    def __init__(self, sizes: PixelLMSizes):
        super().__init__()
        llama, width, hidden = sizes.llama, sizes.decoder.width, sizes.llama.hidden_size
        self.embed_tokens = nn.Embedding(llama.vocab_size, hidden)
        self.layers = nn.ModuleList(Layer(llama) for _ in range(llama.num_hidden_layers))
        self.norm = RmsNorm(hidden, llama.rms_norm_eps)
        self.mm_projector = projector(sizes.clip.hidden_size, hidden)
        self.out_mm_projector = projector(sizes.clip.hidden_size, hidden)
        self.prompt_encoder = PromptEncoder(sizes.decoder)
        self.mask_decoder = MaskDecoder(sizes.decoder)
        self.image_feature_neck = nn.Sequential(
            nn.Conv2d(hidden, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )
        self.text_hidden_fcs = nn.ModuleList(
            [nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Dropout(0.0))]
        )


class PixelLM(nn.Module):
    def __init__(self, sizes: PixelLMSizes):
        super().__init__()
        self.sizes = sizes
        self.model = Body(sizes)
        self.lm_head = nn.Linear(sizes.llama.hidden_size, sizes.llama.vocab_size, bias=False)
        self.clip = ClipVision(sizes.clip)  # a checkpoint of its own, see `split_state`

    @classmethod
    def from_tensors(
        cls,
        config: dict,
        clip_config: dict,
        tensors: Mapping[str, np.ndarray | Tensor],
        clip_tensors: Mapping[str, np.ndarray | Tensor],
    ) -> PixelLM:
        """Build from the two checkpoints; decoder depth and MLP widths come from the tensors' shapes."""
        lin1 = "model.mask_decoder.transformer.0.layers.{}.mlp.lin1.weight"
        sizes = PixelLMSizes.read(config, clip_config)
        decoder = replace(
            sizes.decoder,
            mlp=tensors[lin1.format(0)].shape[0],
            depth=next(i for i in range(99) if lin1.format(i) not in tensors),
            mask_channels=tensors["model.prompt_encoder.mask_downscaling.3.weight"].shape[0],
        )
        with torch.device("meta"):
            net = cls(replace(sizes, decoder=decoder))
        state = dict(tensors) | {f"clip.{key}": value for key, value in clip_tensors.items()}
        state = {
            key: torch.as_tensor(value).float()
            for key, value in state.items()
            if not key.endswith(STORED_BUT_COMPUTED)
        }
        net.load_state_dict(state, strict=True, assign=True)
        return net.eval().requires_grad_(False)

    def split_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(language checkpoint, CLIP checkpoint): the two key sets of a release."""
        state = self.state_dict()
        return (
            {key: value for key, value in state.items() if not key.startswith("clip.")},
            {key.removeprefix("clip."): value for key, value in state.items() if key.startswith("clip.")},
        )

    def encode(self, pixels: Tensor, fitted: list[tuple[int, int]]) -> ImageFeatures:
        """pixels (B, 3, side, side), fitted: (h', w') of each -> features for the LLM and for the masks."""
        s, patch = self.sizes, self.sizes.clip.patch_size
        valid = [patch_validity(h, w, patch, s.grid) for h, w in fitted]
        token_valid = [patch_validity(h, w, patch * s.grid // s.token_grid, s.token_grid) for h, w in fitted]
        valid, token_valid = (torch.from_numpy(np.stack(v)).to(pixels.device) for v in (valid, token_valid))
        deep, shallow = self.clip(pixels, valid, (s.deep_layer, s.shallow_layer))
        tokens = self.model.mm_projector(self.reduced(deep))
        projected = self.model.out_mm_projector(deep), self.model.out_mm_projector(shallow)
        return ImageFeatures(deep, shallow, tokens, token_valid, projected)

    def reduced(self, deep: Tensor) -> Tensor:
        """(B, G*G, C) -> (B, token_grid^2, C) by bilinear reduction (the mean of 2 x 2 patches)."""
        grid, side = self.sizes.grid, self.sizes.token_grid
        image = deep.float().transpose(1, 2).unflatten(-1, (grid, grid))
        image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
        return image.flatten(2).transpose(1, 2).to(deep.dtype)

    def neck(self, features: ImageFeatures) -> list[Tensor]:
        """The two scales, deep first, each (B, D, G, G)."""
        grid = self.sizes.grid
        images = (p.transpose(1, 2).unflatten(-1, (grid, grid)) for p in features.projected)
        return [self.model.image_feature_neck(image) for image in images]

    def hidden(
        self, embeds: Tensor, positions: Tensor, allowed: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        return run_layers(
            self.model.layers, self.model.norm, self.sizes.llama, embeds, positions, allowed, cache
        )

    def fuse(self, seg_hidden: Tensor) -> Tensor:
        """fused[n, s] = 1/(K*S) * sum_k mlp(hidden[n, s, k]): (N*S*K, H) -> (N, S, D).

        The weight is 1/(K*S), not 1/K: the original builds its scalars over all S*K tokens.
        """
        s = self.sizes
        embedded = self.model.text_hidden_fcs[0](seg_hidden)
        grouped = embedded.unflatten(0, (-1, s.decoder.scales, s.seg_token_num))
        return grouped.sum(dim=2) / s.seg_tokens

    def decode_masks(self, scales: list[Tensor], prompts: Tensor) -> tuple[list[Tensor], Tensor]:
        """scales: S x `MaskDecoder.source` (N, D, h, w); prompts (N, S, D) -> levels; low_res (N, 1, m, m)"""
        levels: list[Tensor] = []
        for level, source in enumerate(scales):
            levels.append(
                self.model.mask_decoder(
                    level,
                    source,
                    prompts[:, level],
                    self.model.prompt_encoder,
                    levels[-1] if levels else None,
                )
            )
        size = levels[-1].shape[-2:]
        resized = [F.interpolate(m.float(), size=size, mode="bilinear", align_corners=False) for m in levels]
        return levels, sum(resized) / len(resized)
