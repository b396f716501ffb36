"""What the tiny model is trained on: answers, masks, and three crutches that are thrown away afterwards.

The crutches: dense heads on the encoder, an oracle prompt for the mask decoder until the language model can
name things, and image tokens pulled towards the embeddings of the words for what they show.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.reference.pixellm import ImageFeatures, PixelLM
from pixelrt_export.tiny.rows import Packer, Rows
from pixelrt_export.tiny.scene_cache import MOST, Batch
from pixelrt_export.tiny.things import COLOURS, LONG_SIDE, SHAPES

ATTRIBUTES = 5 + 6 + 3 + 1 + 12  # one-hot shape, colour, texture; radius; sines of the position
WORDS = (*SHAPES, *COLOURS, "striped", "dotted")


class Crutches(nn.Module):
    """Train-only parameters."""

    def __init__(self, net: PixelLM, word_ids: list[int]):
        super().__init__()
        width = net.sizes.clip.hidden_size
        self.shape, self.colour, self.texture = nn.Linear(width, 6), nn.Linear(width, 7), nn.Linear(width, 4)
        self.offset = nn.Linear(width, 3)
        self.inside_deep, self.inside_shallow = nn.Linear(width, 16), nn.Linear(width, 16)
        self.oracle = nn.Linear(ATTRIBUTES, net.sizes.decoder.scales * net.sizes.decoder.width)
        self.scale, self.shift = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-2.0))
        self.register_buffer("word_ids", torch.tensor(word_ids))


def cover(batch: Batch, cell: int) -> Tensor:
    """Share of each cell that each label covers: (B, MOST + 1, S / cell, S / cell)."""
    return F.avg_pool2d(F.one_hot(batch.labels, MOST + 1).permute(0, 3, 1, 2).float(), cell)


def encoder_loss(net: PixelLM, crutches: Crutches, batch: Batch, deep: Tensor, shallow: Tensor) -> Tensor:
    """Each patch names its object, points at its centre and draws 4 x 4 cells of the foreground."""
    patch, grid = net.sizes.clip.patch_size, net.sizes.grid
    share = cover(batch, patch)[:, 1:]
    owner = torch.where(share.amax(1) < 0.3, 0, share.argmax(1) + 1).flatten(1)  # (B, G*G)
    tables = F.pad(batch.tables, (0, 0, 1, 0))
    truth = torch.gather(tables, 1, owner[..., None].expand(-1, -1, tables.shape[-1]))
    owned = (owner > 0).float()
    weight = (0.3 + 0.7 * owned).flatten()
    loss = deep.new_zeros(())
    for k, head in enumerate((crutches.shape, crutches.colour, crutches.texture)):
        each = F.cross_entropy(head(deep).flatten(0, 1), truth[..., k].long().flatten(), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
    centre = (torch.arange(grid) + 0.5) * patch
    wanted = torch.stack(
        [
            (truth[..., 3] - centre.repeat(grid)) / 20,
            (truth[..., 4] - centre.repeat_interleave(grid)) / 20,
            (truth[..., 5] - 18) / 6,
        ],
        dim=-1,
    )
    loss = loss + ((crutches.offset(deep) - wanted).abs().sum(-1) * owned).sum() / owned.sum()
    inside = F.interpolate((batch.labels > 0).float()[:, None], size=(4 * grid, 4 * grid), mode="area")
    inside = F.pixel_unshuffle(inside, 4).flatten(2).transpose(1, 2)
    for head, features in ((crutches.inside_deep, deep), (crutches.inside_shallow, shallow)):
        loss = loss + F.binary_cross_entropy_with_logits(head(features), inside)
    return loss


def alignment_loss(net: PixelLM, crutches: Crutches, batch: Batch, tokens: Tensor) -> Tensor:
    """cos(image token, word) says whether the token's cell shows an object the word describes."""
    share = cover(batch, 2 * net.sizes.clip.patch_size)[:, 1:].flatten(2)  # (B, MOST, I)
    shape, colour, texture = (batch.tables[..., k].long() for k in range(3))
    words = torch.cat(
        [F.one_hot(shape, 6)[..., 1:], F.one_hot(colour, 7)[..., 1:], F.one_hot(texture, 4)[..., 2:]], -1
    )
    shown = (share[..., None] * words[:, :, None].float()).amax(1)  # (B, I, words)
    certain = (shown > 0.2).float() + (shown < 0.05).float()
    names = F.normalize(net.model.embed_tokens.weight[crutches.word_ids], dim=-1)
    logits = F.normalize(tokens, dim=-1) @ names.T * crutches.scale + crutches.shift
    each = F.binary_cross_entropy_with_logits(logits, (shown > 0.2).float(), reduction="none")
    return (each * certain).sum() / certain.sum()


def attributes(rows: Tensor) -> Tensor:
    """Table rows (N, FIELDS) -> what the oracle is told (N, ATTRIBUTES)."""
    hot = [F.one_hot(rows[:, k].long() - 1, n).float() for k, n in enumerate((5, 6, 3))]
    angles = rows[:, 3:5, None] / LONG_SIDE * math.pi * torch.tensor([1.0, 2.0, 4.0])
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.cat([*hot, (rows[:, 5:6] - 18) / 6, waves], dim=1)


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """4 BCE + Dice for (N, h, w)."""
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return 4 * F.binary_cross_entropy_with_logits(logits, truth) + dice.mean()


def prefix_embeds(net: PixelLM, packer: Packer, features: ImageFeatures) -> Tensor:
    batch, table = len(features.tokens), net.model.embed_tokens
    before, after = (
        table(torch.tensor(ids))[None].expand(batch, -1, -1) for ids in (packer.before, packer.after)
    )
    return torch.cat([before, features.tokens, after], dim=1)


def answer_hidden(net: PixelLM, packer: Packer, rows: Rows, features: ImageFeatures) -> Tensor:
    """(B, T, H): the hidden state that predicts packed position t (the one before it)."""
    embeds = torch.cat([prefix_embeds(net, packer, features), net.model.embed_tokens(rows.ids)], dim=1)
    ahead = torch.arange(packer.prefix).expand(len(embeds), -1)
    hidden, _ = net.hidden(
        embeds, torch.cat([ahead, rows.position], dim=1), packer.allowed(rows, features.token_valid)
    )
    # The first position of a question is never a label, so the left neighbour is always its own context.
    return hidden[:, packer.prefix - 1 : -1]


def joint_loss(
    net: PixelLM,
    crutches: Crutches,
    packer: Packer,
    batch: Batch,
    rng: random.Random,
    *,
    questions: int,
    most_masks: int,
    oracle: float,
    aid: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """3 LM + masks + aid * (dense heads, alignment) + pull of the LLM's prompts to the oracle's.

    oracle: probability that the decoder is prompted by the oracle; aid: 1 -> 0 weight of the crutches.
    """
    features = net.encode(batch.pixels, batch.fitted)
    rows = packer.pack(batch.things, questions, rng)
    while len(rows.targets) < 2:  # as in a smoke test's small batch: `pull` needs the spread of two prompts
        rows = packer.pack(batch.things, questions, rng)
    hidden = answer_hidden(net, packer, rows, features)
    chosen = rows.labels >= 0
    each = F.cross_entropy(net.lm_head(hidden[chosen]), rows.labels[chosen], reduction="none")
    language = (each * rows.weight[chosen]).sum() / rows.weight.sum()

    targets = rng.sample(rows.targets, min(most_masks, len(rows.targets)))
    image = torch.tensor([b for b, _, _ in targets])
    at = torch.tensor([t for _, t, _ in targets])
    label = torch.tensor([thing.label for _, _, thing in targets])
    seg_hidden = hidden[image[:, None], at[:, None] + torch.arange(net.sizes.seg_tokens)].flatten(0, 1)
    prompts = net.fuse(seg_hidden)
    told = crutches.oracle(attributes(batch.tables[image, label - 1])).unflatten(-1, prompts.shape[1:])
    pull = (prompts - told.detach()).square().mean() / (told.detach().var(0).mean() + 1e-3)
    swap = (torch.rand(len(targets)) < oracle)[:, None, None]
    scales = [net.model.mask_decoder.source(i, f)[image] for i, f in enumerate(net.neck(features))]
    levels, low_res = net.decode_masks(scales, torch.where(swap, told, prompts))
    truth = (batch.labels[image] == label[:, None, None]).float()
    full = F.interpolate(low_res, size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    coarse = F.interpolate(truth[:, None], size=levels[0].shape[-2:], mode="area")[:, 0]
    fine_loss, coarse_loss = mask_loss(full, truth), mask_loss(levels[0][:, 0], coarse)

    dense = encoder_loss(net, crutches, batch, features.deep, features.shallow)
    aligned = alignment_loss(net, crutches, batch, features.tokens)
    loss = (
        3 * language
        + fine_loss
        + 0.4 * coarse_loss
        + aid * (0.3 * dense + 2.0 * aligned)
        + (0.5 * pull if oracle > 0 else 0.0)
    )
    with torch.no_grad():
        hit, truth = full > 0, truth > 0
        iou = (hit & truth).sum((1, 2)) / (hit | truth).sum((1, 2)).clamp(min=1)
        own = iou[~swap.flatten()]
        wrong = (net.lm_head(hidden[chosen]).argmax(-1) != rows.labels[chosen]).float().mean()
    figures = {
        "language": language,
        "masks": fine_loss,
        "coarse": coarse_loss,
        "dense": dense,
        "aligned": aligned,
        "pull": pull,
        "wrong_tokens": wrong,
        "iou": own.mean() if len(own) else iou.mean(),
    }
    return loss, {name: value.detach() for name, value in figures.items()}
