"""The original's procedure: what its `evaluate` does for one question, over the project's reference in torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.reference.generate import Generation, Reference
from pixelrt_export.reference.pixellm import PixelLM
from pixelrt_export.vision_tower import find_vision_tower, open_vision_tower

from benchmarks.peers.turns import Times


def load_reference(checkpoint: Path, seg_ids: list[int], dtype: str) -> Reference:
    main = Checkpoint.open(checkpoint)
    clip = open_vision_tower(find_vision_tower(checkpoint, main.config))
    tensors, clip_tensors = (
        {key: c.tensor(key).astype(np.float32) for key in c.shapes()} for c in (main, clip)
    )
    net = PixelLM.from_tensors(main.config, clip.config, tensors, clip_tensors)
    if dtype == "nf4":
        in_nf4(net)
    return Reference(net.to(getattr(torch, dtype)) if dtype == "bfloat16" else net, seg_ids)


def in_nf4(net: PixelLM) -> None:
    """Every linear layer but CLIP's in bitsandbytes' NF4, computing in float32. The original leaves out a module
    that no PixelLM has, and loads CLIP later."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in [*net.model.modules(), net]:
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                narrow = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=torch.float32,
                    quant_type="nf4",
                )
                narrow.weight = Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                narrow.bias = child.bias
                setattr(parent, name, narrow.to("cpu"))  # which rounds


@torch.inference_mode()
def original(
    reference: Reference, rgb: np.ndarray, prompt: list[int], answer: list[int], steps: int
) -> tuple[Times, list[bool], Generation]:
    """An answer that says what `answer` does: its time, whether each step looked at agrees, the masks."""
    count = len(answer)
    looked_at = np.unique(np.linspace(0, count - 1, steps or count).round().astype(int)).tolist()
    looked_at = (
        looked_at if looked_at[-1:] == [count - 1] else [*looked_at, count - 1]
    )  # whose states make masks
    start = time.perf_counter()
    pixels, fitted = reference.pixels(rgb)
    middle, agree = time.perf_counter(), []
    for at in looked_at:
        hidden, logits = reference.step(pixels, fitted, prompt + answer[:at])
        agree.append(int(logits.argmax()) == answer[at])
    stepped = time.perf_counter()
    features = reference.net.encode(pixels, [fitted])
    drawn = reference.drawn(rgb.shape[:2], fitted, prompt, answer, logits[None], hidden, features)
    rest = time.perf_counter() - stepped + middle - start
    step = (stepped - middle) / len(looked_at)
    return {"answer": step * count + rest, "step": step, "rest": rest}, agree, drawn
