"""How far a stage's outputs may be from the golden ones, as |here - golden| / |golden|, and why.

Golden outputs are computed in fp32 from the stored weights. What is left to differ is how a backend rounds.
"""

from __future__ import annotations

from typing import Any

from pixelrt.segmenter import Segmenter

STAGES = ("encoder", "language", "pixel_decoder")
# fp32, added up in another order: 1e-5 at most in both small models.
WIDE = 1e-3
# Activations in fp16 (or multiplied in TF32, whose mantissa is fp16's). The two small models, of four layers, are off
# by 0.0013 at most with fp16 activations on the CPU. Independent roundings grow with the root of the depth: 0.004 for
# 40 layers; seven times that, since no engine has been measured. Faults are of another size.
NARROW = 0.03
# Activations rounded to few bits, or a stage of another precision than the one the goldens were made with: as much as
# rounding may change a stage against its checkpoint (docs/precision.md).
ROUNDED = {"int8": 0.15, "int4": 0.3, "nf4": 0.3}
# Logits of one token are off by `limit` times their root mean square each, give or take; the difference of two of them
# by more than six times that is no rounding.
TIES = 6
# A mask's pixels against numpy's from the same logits: those on an edge, whose logit rounds to the other side of 0.
PIXELS = 2e-3


def limits_of(segmenter: Segmenter) -> dict[str, float]:
    """Stage -> limit of its outputs, given golden inputs; for a segmenter on any backend."""
    return {stage: _limit(segmenter, stage, getattr(segmenter, f"_{stage}")) for stage in STAGES}


def _limit(segmenter: Segmenter, stage: str, engine: Any) -> float:
    precision = segmenter.bundle.manifest["precision"][stage]
    record = getattr(engine, "record", None)  # of a TensorRT engine
    limit = NARROW if record is not None or engine.file.activations == "float16" else WIDE
    if record is None:
        # ONNX Runtime rounds activations to 8 bits where it multiplies them with rounded weights.
        rounds = precision in ROUNDED
    else:
        rounds = record.precision != precision or (stage == "encoder" and precision == "int8")
    return max(limit, ROUNDED.get(precision, limit)) if rounds else limit
