"""What is trained, by which optimiser, at which rate, and how the processes of a run agree on a gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pixelrt_export.tiny.checkpoint import new_model, vocab_size
from pixelrt_export.tiny.losses import WORDS, Crutches
from pixelrt_export.tiny.muon import Muon
from pixelrt_export.tiny.tokenizer import Tokenizer

ENCODER_SHARE = 0.12  # of the time: at 300 steps of 32 pictures its loss still fell fast (1.9)
NOT_FOR_MUON = ("embed", "lm_head", "tokens", "iou", "crutches", "output_hypernetworks")
IDLE = (
    "post_layernorm",
    "point_embed",
    "mask_downscaling",
    "not_a_point",
    "iou_prediction_head",
    *(f"output_hypernetworks_mlps.{i}." for i in (1, 2, 3)),
)


class Trained(nn.Module):
    """All that training changes, under one roof for the optimisers and the state file."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.net = new_model(vocab_size(tokenizer))
        self.crutches = Crutches(self.net, [tokenizer.encode(word)[0] for word in WORDS])

    def live(self, joint: bool) -> dict[str, nn.Parameter]:
        """Parameters that the stage trains: those without a use in the model stay as they were drawn."""
        last = len(self.net.clip.vision_model.encoder.layers) - 1  # runs behind the selected layer: never
        idle = (*IDLE, f"encoder.layers.{last}.")
        return {
            name: p
            for name, p in self.named_parameters()
            if not any(part in name for part in idle) and (joint or name.startswith(("net.clip", "crutches")))
        }


def optimisers(trained: Trained, rate: float) -> list[torch.optim.Optimizer]:
    live = trained.live(joint=True)
    muon = [p for name, p in live.items() if p.ndim == 2 and not any(part in name for part in NOT_FOR_MUON)]
    taken = set(map(id, muon))
    rest = [p for p in live.values() if id(p) not in taken]
    return [Muon(muon, lr=rate), torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


def learning_rate(progress: float, encoder_share: float = ENCODER_SHARE) -> float:
    """Factor: linear warm-up over 4 %, then a half cosine to 0; each stage has its own."""
    first = progress < encoder_share
    stage, share = (progress, encoder_share) if first else (progress - encoder_share, 1 - encoder_share)
    at = min(1.0, stage / share)
    floor = 0.3 if first else 0.0  # the encoder goes on learning
    return min(1.0, at / 0.04 + 0.02) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at)))


def averaged(params: list[nn.Parameter], figures: Tensor, processes: int) -> Tensor:
    """Mean of the gradients and of `figures` over all processes, in one all-reduce."""
    if processes == 1:
        return figures
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    flat = torch.cat([*(g.flatten() for g in grads), figures])
    torch.distributed.all_reduce(flat)
    flat /= processes
    for p, mean in zip(params, flat.split([p.numel() for p in params] + [len(figures)])[:-1], strict=True):
        p.grad = mean.view_as(p)
    return flat[-len(figures) :]


class Float32Attention(TorchFunctionMode):
    """Attention in float32 under autocast: on the CPU its backward pass in bfloat16 takes twice as long, not half."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            query, key, value, *rest = args
            return func(query.float(), key.float(), value.float(), *rest, **(kwargs or {}))


@contextlib.contextmanager
def arithmetic(device: str, dtype: str) -> Iterator[None]:
    """Of the forward pass: "float32", or "bfloat16" for the products, where torch's autocast thinks it safe."""
    kind = torch.device(device).type
    attention = Float32Attention() if kind == "cpu" and dtype == "bfloat16" else contextlib.nullcontext()
    with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"), attention:
        yield
