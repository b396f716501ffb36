"""Weights in blocks of rows that share a scale:  W[k, n] = scale[k // block, n] * q[k, n],  q in -8..7.

K inputs, N outputs, as ONNX multiplies them (x W). Symmetric: no zero points, which TensorRT does not take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOW, HIGH = -8, 7
BLOCKS = (32, 64, 128)  # what ONNX Runtime and TensorRT both take
# Scales tried for a block, in parts of the one that reaches its largest weight: that weight alone would else set
# the steps of all. (Hidden states of pixellm-tiny are off by 0.095 in place of 0.103 for it.)
CLIPS = (1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.8, 0.76, 0.72, 0.68)
SMALLEST = np.float32(2**-24)  # of the fp16 numbers above 0: scales are stored in fp16


@dataclass(frozen=True)
class Blocks:
    values: np.ndarray  # (K, N) int8, -8..7
    scales: np.ndarray  # (K / block, N) float16

    @property
    def block(self) -> int:
        return len(self.values) // len(self.scales)

    def dense(self) -> np.ndarray:
        """(K, N) float32"""
        blocks = self.values.reshape(len(self.scales), self.block, -1)
        return (blocks * self.scales.astype(np.float32)[:, None]).reshape(self.values.shape)


def block_of(inputs: int, wanted: int) -> int | None:
    """The largest of BLOCKS that divides the layer's inputs and is no larger than wanted."""
    return max((b for b in BLOCKS if b <= wanted and inputs % b == 0), default=None)


def block_scale(rows: np.ndarray, importance: np.ndarray, clips: Sequence[float] = CLIPS) -> np.ndarray:
    """The scale (N,) of one block of weights (block, N) with the least squared error, rows weighed (block,).

    Rounded to fp16, as it is stored.
    """
    largest = np.abs(rows).max(0) / HIGH
    best, least = np.empty(0), np.empty(0)
    lost = np.empty_like(rows)  # one buffer: memory for every step took longer than the steps
    for clip in clips:
        scale = np.maximum(largest * np.float32(clip), SMALLEST).astype(np.float16).astype(np.float32)
        rounded(rows, scale, lost)
        lost *= scale
        lost -= rows
        error = importance @ np.square(lost, out=lost)
        if not len(best):
            best, least = scale, error
        else:
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def rounded(rows: np.ndarray, scale: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Nearest steps, float32."""
    steps = np.divide(rows, scale, out=out)
    np.rint(steps, out=steps)
    return np.clip(steps, LOW, HIGH, out=steps)


def round_blocks(weight: np.ndarray, block: int) -> Blocks:
    """Each weight to its nearest step: the quantiser that needs no pictures."""
    values = np.empty(weight.shape, np.int8)
    scales = np.empty((len(weight) // block, weight.shape[1]), np.float16)
    for number in range(len(scales)):
        part = slice(number * block, (number + 1) * block)
        rows = weight[part].astype(np.float32)
        scale = block_scale(rows, np.ones(block))
        values[part], scales[number] = rounded(rows, scale), scale
    return Blocks(values, scales)
