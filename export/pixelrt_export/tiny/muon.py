"""Muon in float32, batched over matrices of one shape: the step is momentum made nearly orthogonal."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor, steps: int = 4) -> Tensor:
    """(M, r, c) -> the same with all singular values near 1 (quintic Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class Muon(torch.optim.Optimizer):
    """For hidden weights, convolutions among them (as outputs x rest).

    Steps are scaled by 0.2 sqrt(max(r, c)): AdamW's learning rates carry over.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["momentum"])
                    update = p.grad.lerp(mean, group["momentum"]).flatten(1)
                    same_shape[tuple(update.shape)].append((p, update))
            for shape, pairs in same_shape.items():
                steps = orthogonalised(torch.stack([update for _, update in pairs]))
                for (p, _), step in zip(pairs, steps, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(step.view_as(p), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
