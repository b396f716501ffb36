"""What the small PSALM is trained on: masks and conditions by set matching, and two crutches thrown away later.

The crutches: descriptions (each cell of the decoder's maps, and what the language model makes of each marked region,
must tell shape, colour, texture, centre and size of its thing), and guided queries, which are told where to look by
noisy true masks and need no matching.

Letters: B images, N prompts, Q queries, K conditions, T = MOST targets, L + 1 predictions, h = w cells a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelrt_export.reference.masked_decoder import Prediction
from pixelrt_export.reference.psalm import ImageFeatures, Psalm
from pixelrt_export.tiny.losses import cover
from pixelrt_export.tiny.psalm_matching import BCE, CLASS, DICE, match
from pixelrt_export.tiny.psalm_prompts import KINDS
from pixelrt_export.tiny.psalm_rows import Packer, Rows
from pixelrt_export.tiny.scene_cache import MOST, Batch

NAMED = (6, 7, 4)  # shape, colour, texture, 0 where there is none
WAVES = 12  # of the centre's place
BACKGROUND_WEIGHT, ABSENT_WEIGHT = 0.1, 0.2  # of queries and conditions that nothing answers


class Crutches(nn.Module):
    """Train-only parameters."""

    def __init__(self, net: Psalm):
        super().__init__()
        width, described = net.config.width, sum(NAMED) + 1 + WAVES
        self.dense = nn.ModuleList(nn.Linear(width, described) for _ in range(4))
        self.marked = nn.Linear(width, described)
        self.guided = nn.Parameter(torch.zeros(width))


def waves(places: Tensor, side: int) -> Tensor:
    """Sines of places (.., 2) in pixels -> (.., WAVES)"""
    angles = places[..., None] / side * math.pi * torch.tensor([1.0, 2.0, 4.0])
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def description_loss(said: Tensor, truth: Tensor, side: int) -> Tensor:
    """said (M, sum(NAMED) + 1 + WAVES), truth (M, FIELDS): rows of the things' table, zeros for no thing."""
    said, owned = said.split([*NAMED, 1, WAVES], dim=-1), (truth[:, 0] > 0).float()
    weight, loss = 0.3 + 0.7 * owned, truth.new_zeros(())
    for k in range(3):
        each = F.cross_entropy(said[k], truth[:, k].long(), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
    where = torch.cat([truth[:, 5:6] / side * 10, waves(truth[:, 3:5], side)], dim=-1)
    off = (torch.cat(said[3:], dim=-1) - where).abs().mean(-1)
    return loss + 2 * (off * owned).sum() / owned.sum().clamp(min=1)


def dense_loss(net: Psalm, crutches: Crutches, batch: Batch, features: ImageFeatures) -> Tensor:
    """Every cell of the pixel decoder's four maps describes the thing that covers most of it."""
    side, loss = net.config.image_size, batch.pixels.new_zeros(())
    tables = F.pad(batch.tables, (0, 0, 1, 0))
    for head, x in zip(crutches.dense, (*features.levels, features.mask_features), strict=True):
        share = cover(batch, side // x.shape[-1])[:, 1:]
        owner = torch.where(share.amax(1) < 0.4, 0, share.argmax(1) + 1).flatten(1)  # (B, cells)
        truth = torch.gather(tables, 1, owner[..., None].expand(-1, -1, tables.shape[-1]))
        loss = loss + description_loss(head(x.flatten(2).mT).flatten(0, 1), truth.flatten(0, 1), side)
    return loss / 4


def marked_loss(net: Psalm, crutches: Crutches, batch: Batch, rows: Rows, conditions: Tensor) -> Tensor:
    """Every region's condition (N, K, D) describes what was marked."""
    n, k = torch.nonzero(rows.valid & (rows.kind == 2)[:, None], as_tuple=True)
    label = rows.targets[n, rows.wanted[n, :, k].argmax(-1)]
    truth = batch.tables[rows.image[n], label - 1]
    return description_loss(crutches.marked(conditions[n, k]), truth, net.config.image_size)


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """BCE and Dice of M masks (M, .., ..)"""
    if not len(logits):
        return logits.sum()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return BCE * F.binary_cross_entropy_with_logits(logits, truth) + DICE * dice.mean()


def condition_loss(scores: Tensor, answered: Tensor, rows: Rows) -> Tensor:
    """scores, answered (N, Q, K): which condition each query answers, none by default.

    Class lists are a choice of one (the last is the background); sentences and regions are judged one by one.
    """
    listed = rows.kind == 0
    logits = scores[listed].masked_fill(~rows.valid[listed][:, None], -1e4)
    last = rows.valid[listed].sum(-1) - 1
    found = answered[listed].sum(-1) > 0
    choice = torch.where(found, answered[listed].argmax(-1), last[:, None])
    weight = torch.where(found, 1.0, BACKGROUND_WEIGHT)
    each = F.cross_entropy(logits.flatten(0, 1), choice.flatten(), reduction="none")
    loss = (each * weight.flatten()).sum() / weight.sum().clamp(min=1)
    judged = rows.valid[~listed][:, None].expand_as(scores[~listed])
    wanted, said = answered[~listed][judged], scores[~listed][judged]
    weight = torch.where(wanted > 0, 1.0, ABSENT_WEIGHT)
    each = F.binary_cross_entropy_with_logits(said, wanted, reduction="none")
    return CLASS * (loss + (each * weight).sum() / weight.sum().clamp(min=1))


def set_loss(
    net: Psalm, rows: Rows, conditions: Tensor, predictions: list[Prediction], cells: Tensor, fine: Tensor
) -> dict[str, Tensor]:
    """Every prediction matched by itself; the last one's masks are also compared at twice the resolution.

    cells (N, T, h, w), fine (N, T, 2 h, 2 w): cover of the targets.
    """
    masks, classes = [], []
    for prediction in predictions:
        scores = net.predictor.scores(prediction.states, conditions, rows.kind).float()
        n, q, t = match(prediction.masks.detach().float(), scores.detach(), cells, rows)
        answered = torch.zeros_like(scores)
        answered[n, q] = rows.wanted[n, t]
        classes.append(condition_loss(scores, answered, rows))
        masks.append(mask_loss(prediction.masks[n, q], cells[n, t]))
    large = F.interpolate(
        predictions[-1].masks[n, q][:, None], scale_factor=2, mode="bilinear", align_corners=False
    )[:, 0]
    last = mask_loss(large, fine[n, t])
    with torch.no_grad():
        hit, true = large > 0, fine[n, t] > 0.5
        iou = (hit & true).sum((1, 2)) / (hit | true).sum((1, 2)).clamp(min=1)
        figures = {f"iou_{KINDS[i]}": iou[rows.kind[n] == i].mean() for i in range(3)}
        k, listed = rows.wanted[n, t].argmax(-1), rows.kind[n] == 0
        shown = scores.masked_fill(~rows.valid[:, None], -1e4)
        figures["named"] = (shown[n, q].argmax(-1) == k)[listed].float().mean()  # the right class
        figures["found"] = (
            (scores[n, q, k] >= scores[n, :, k].amax(-1))[~listed].float().mean()
        )  # the best mask
    return {"masks": last + sum(masks) / len(masks), "classes": classes[-1] + sum(classes) / len(classes)} | {
        name: torch.nan_to_num(value) for name, value in figures.items()
    }


def guided_loss(
    net: Psalm, crutches: Crutches, batch: Batch, rows: Rows, conditions: Tensor, keys: list, features: Tensor
) -> Tensor:
    """One query a thing, told where to look; it must draw the thing and choose it from the class list."""
    config, listed = net.config, torch.nonzero(rows.kind == 0)[:, 0]
    image = rows.image[listed]
    labels = torch.arange(1, MOST + 1).expand(len(listed), -1)
    there = batch.tables[image][..., 0] > 0  # (n, T)
    windows = []
    for side in config.levels:
        inside = cover(batch, config.image_size // side)[image, 1:].flatten(2) > 0.2
        inside = inside ^ (torch.rand_like(inside, dtype=torch.float32) < 0.1)
        windows.append(inside | ~inside.any(-1, keepdim=True))
    places = net.predictor.query_embed.weight[torch.randint(config.queries, labels.shape)]
    queries = crutches.guided.expand(*labels.shape, -1)
    predictions = net.predictor(queries, keys, features, image, places, windows)[1:]
    truth = cover(batch, config.image_size // config.mask_grid)[image, 1:][there]
    wanted = rows.wanted.new_zeros(len(listed), MOST + 1, rows.wanted.shape[-1])
    wanted.scatter_(1, rows.targets[listed][..., None].expand_as(rows.wanted[listed]), rows.wanted[listed])
    valid = rows.valid[listed]
    choice = torch.where(
        wanted[:, 1:].sum(-1) > 0, wanted[:, 1:].argmax(-1), valid.sum(-1, keepdim=True) - 1
    )[there]
    loss = features.new_zeros(())
    for prediction in predictions:
        scores = net.predictor.scores(prediction.states, conditions[listed], rows.kind[listed]).float()
        scores = scores.masked_fill(~valid[:, None], -1e4)
        loss = (
            loss + mask_loss(prediction.masks[there], truth) + CLASS * F.cross_entropy(scores[there], choice)
        )
    return loss / len(predictions)


def joint_loss(
    net: Psalm, crutches: Crutches, packer: Packer, batch: Batch, rows: Rows, aid: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sets + aid * (guided queries + descriptions); aid: 1 -> 0 weight of the crutches."""
    features = net.encode(batch.pixels)
    queries, conditions = packer.read(net, rows, features.tokens)
    keys = net.predictor.keys(features.levels)
    predictions = net.predictor(queries, keys, features.mask_features, rows.image)
    step = net.config.image_size // net.config.mask_grid
    image = rows.image[:, None]
    truth = (cover(batch, step)[image, rows.targets], cover(batch, step // 2)[image, rows.targets])
    figures = set_loss(net, rows, conditions, predictions, *truth)
    figures["guided"] = guided_loss(net, crutches, batch, rows, conditions, keys, features.mask_features)
    figures["dense"] = dense_loss(net, crutches, batch, features)
    figures["marked"] = marked_loss(net, crutches, batch, rows, conditions)
    aids = figures["guided"] + 0.5 * figures["dense"] + figures["marked"]
    loss = figures["masks"] + figures["classes"] + aid * aids
    return loss, {name: value.detach() for name, value in figures.items()}
