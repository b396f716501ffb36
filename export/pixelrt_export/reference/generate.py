"""Greedy answers: the original's procedure without a cache, and the same mathematics with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixelrt_export.reference.llama import Cache
from pixelrt_export.reference.pixellm import ImageFeatures, PixelLM
from pixelrt_export.reference.preprocess import postprocess, preprocess, to_batch

IMAGE_ID = -200  # stands in the prompt ids where the image tokens go
EOS_ID = 2


@dataclass
class Generation:
    """Every stage of one answer. T: prompt ids (one is -200) + generated ids, I image tokens, N targets."""

    token_ids: list[int]  # generated, with eos when it came
    step_logits: Tensor  # (generated, V)
    hidden: Tensor  # (T + I - 2, H) after the final norm
    seg_hidden: Tensor  # (6N, H), or fewer rows than a multiple of 6 when the answer is malformed
    fused: Tensor  # (N, S, D)
    level_masks: list[Tensor]  # S x (N, 1, m_l, m_l) logits
    low_res: Tensor  # (N, 1, m, m) logits
    masks: Tensor  # (N, H0, W0) logits
    features: ImageFeatures
    neck: list[Tensor]  # S x (1, D, G, G)


class Reference:
    """A model that answers: `Reference(net, seg_ids).generate(image, input_ids)`."""

    def __init__(self, net: PixelLM, seg_ids: list[int], eos_id: int = EOS_ID):
        self.net, self.seg_ids, self.eos_id = net, seg_ids, eos_id

    @torch.inference_mode()
    def generate(
        self,
        image: np.ndarray,
        input_ids: list[int],
        max_new_tokens: int = 64,
        procedure: Literal["original", "cached"] = "cached",
    ) -> Generation:
        """Greedy answer to a prompt with one IMAGE_ID about a uint8 (H, W, 3) image.

        original: no cache; CLIP and both projectors again for each token and once more at the end.
        cached: the same mathematics, the image encoded once. Both drop all masks of an answer whose count of
        seg tokens is no multiple of 6. (Attention is fused in both, which the original's was not.)
        """
        pixels, fitted = self.pixels(image)
        steps = self._original if procedure == "original" else self._cached
        new_ids, logits, hidden, features = steps(pixels, fitted, input_ids, max_new_tokens)
        return self.drawn(image.shape[:2], fitted, input_ids, new_ids, logits, hidden, features)

    def pixels(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (H, W, 3) -> pixels (1, 3, side, side) and (h', w')."""
        pixels, fitted = preprocess(image, self.net.sizes.image_size)
        return to_batch(pixels, self.net.model.norm.weight), fitted

    def step(self, pixels: Tensor, fitted: tuple[int, int], ids: list[int]) -> tuple[Tensor, Tensor]:
        """What the original does for each token: CLIP, both projectors and the language model over all ids, the head on
        all rows. The states (L, H) and the logits (V,) of the next token."""
        hidden, _, _ = self._forward(ids, self.net.encode(pixels, [fitted]))
        return hidden[0], self.net.lm_head(hidden)[0, -1].float()

    def drawn(
        self,
        size: tuple[int, int],
        fitted: tuple[int, int],
        input_ids: list[int],
        new_ids: list[int],
        logits: Tensor,
        hidden: Tensor,
        features: ImageFeatures,
    ) -> Generation:
        """The masks of an answer, (H, W) = size."""
        seg_hidden = self._seg_rows(hidden, input_ids + new_ids, features.tokens.shape[1])
        neck = self.net.neck(features)
        usable = seg_hidden if len(seg_hidden) % self.net.sizes.seg_tokens == 0 else seg_hidden[:0]
        fused = self.net.fuse(usable)
        decoder = self.net.model.mask_decoder
        scales = [
            decoder.source(level, image).expand(len(fused), -1, -1, -1) for level, image in enumerate(neck)
        ]
        levels, low_res = self.net.decode_masks(scales, fused)
        return Generation(
            new_ids,
            logits,
            hidden,
            seg_hidden,
            fused,
            levels,
            low_res,
            postprocess(low_res, fitted, size),
            features,
            neck,
        )

    def _seg_rows(self, hidden: Tensor, ids: list[int], image_tokens: int) -> Tensor:
        """The row that PREDICTED each seg id: id k (behind the image) was predicted by row k + I - 2."""
        rows = [k + image_tokens - 2 for k in range(1, len(ids)) if ids[k] in self.seg_ids]
        return hidden[rows]

    def _embed(self, ids: list[int], features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """ids with one IMAGE_ID -> embeddings (1, L, H) and key validity (1, L)."""
        at, table = ids.index(IMAGE_ID), self.net.model.embed_tokens
        before, after = (
            table(torch.tensor(part, device=table.weight.device, dtype=torch.long))[None]
            for part in (ids[:at], ids[at + 1 :])
        )
        ones = features.token_valid.new_ones
        valid = torch.cat([ones(1, before.shape[1]), features.token_valid, ones(1, after.shape[1])], dim=1)
        return torch.cat([before, features.tokens, after], dim=1), valid

    def _forward(self, ids: list[int], features: ImageFeatures) -> tuple[Tensor, Tensor, Cache]:
        embeds, valid = self._embed(ids, features)
        length = embeds.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
        positions = torch.arange(length, device=valid.device)[None]  # padded image tokens count as well
        hidden, cache = self.net.hidden(embeds, positions, (causal & valid)[None])
        return hidden, valid, cache

    def _original(self, pixels: Tensor, fitted: tuple[int, int], ids: list[int], limit: int):
        """Everything again for each token, CLIP and both projectors too, and once more for the masks."""
        ids, prompt, logits = list(ids), len(ids), []
        while True:
            hidden, last = self.step(pixels, fitted, ids)
            logits.append(last)
            ids.append(int(last.argmax()))
            if ids[-1] == self.eos_id or len(ids) - prompt == limit:
                return ids[prompt:], torch.stack(logits), hidden, self.net.encode(pixels, [fitted])

    def _cached(self, pixels: Tensor, fitted: tuple[int, int], ids: list[int], limit: int):
        """The image once, the prompt once, then one row a token."""
        features = self.net.encode(pixels, [fitted])
        hidden, valid, cache = self._forward(ids, features)
        rows, logits, new_ids = [hidden[0]], [], []
        while True:
            logits.append(self.net.lm_head(rows[-1][-1]).float())
            new_ids.append(int(logits[-1].argmax()))
            if new_ids[-1] == self.eos_id or len(new_ids) == limit:
                return new_ids, torch.stack(logits), torch.cat(rows), features
            position = torch.tensor([[valid.shape[1]]], device=valid.device)
            valid = torch.cat([valid, valid.new_ones(1, 1)], dim=1)
            embed = self.net.model.embed_tokens(torch.tensor([new_ids[-1:]], device=valid.device))
            hidden, cache = self.net.hidden(embed, position, valid[:, None, None], cache)
            rows.append(hidden[0])
