"""Which query stands for which target: the cheapest assignment, as in Mask2Former."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pixelrt_export.tiny.psalm_rows import Rows

CLASS, BCE, DICE = 2.0, 5.0, 5.0  # weights of a match, and of the losses


def costs(masks: Tensor, scores: Tensor, truth: Tensor, rows: Rows) -> Tensor:
    """masks (N, Q, h, w) logits, scores (N, Q, K), truth (N, T, h, w) -> (N, Q, T)"""
    x, y = masks.flatten(2), truth.flatten(2)
    bce = (F.softplus(x).sum(-1, keepdim=True) - x @ y.mT) / x.shape[-1]
    p = x.sigmoid()
    dice = 1 - (2 * p @ y.mT + 1) / (p.sum(-1, keepdim=True) + y.sum(-1)[:, None] + 1)
    shown = scores.masked_fill(~rows.valid[:, None], -1e4)
    chance = torch.where((rows.kind == 0)[:, None, None], shown.softmax(-1), shown.sigmoid())
    share = rows.wanted / rows.wanted.sum(-1, keepdim=True).clamp(min=1)
    return BCE * bce + DICE * dice - CLASS * chance @ share.mT


def match(masks: Tensor, scores: Tensor, truth: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt, query and target of every pair, (pairs,) each."""
    table = costs(masks, scores, truth, rows).cpu().numpy()
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for n, count in enumerate((rows.targets > 0).sum(-1).tolist()):
        queries, targets = linear_sum_assignment(table[n, :, :count])
        found[0].extend([n] * len(queries))
        found[1].extend(queries.tolist())
        found[2].extend(targets.tolist())
    n, q, t = (torch.tensor(part, dtype=torch.long) for part in found)
    return n, q, t
