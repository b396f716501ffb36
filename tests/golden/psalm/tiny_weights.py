"""The golden PSALM weights, made again without torch: a rule, and the last bits that the rule cannot give.

The original run drew `torch.randn(shape)` for every float tensor in sorted key order from one seed, and scaled it.
`Normals` follows that generator (Mersenne Twister, 24-bit uniforms, Box-Muller in groups of 16) in float64; torch's
own float32 logarithm and sine differ by a few units in the last place, which weights_ulps.npz holds, as whole
numbers, next to two biases that were set by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

SEED = 20240321
TABLES = ("embed_tokens", "seg_query", "level_embed", "query_embed", "query_feat")
# Of weights, times 1 / sqrt(inputs).
GAINS = {
    "sampling_offsets.weight": 0.8,
    "class_name_projector.weight": 2.0,
    "region_projector.weight": 2.0,
    "CLASS_proj.layers.1.weight": 1.5,
    "mask_embed.layers.2.weight": 3.0,
}


class Normals:
    """Standard normal numbers in the order of torch's CPU generator."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed)._bit_generator

    def __call__(self, count: int) -> np.ndarray:
        """count >= 16; where it is no multiple of 16 the last 16 are drawn again."""
        whole = count - count % 16
        normals = np.empty(count, np.float32)
        uniforms = self._uniforms(count)
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole < count:
            normals[-16:] = _box_muller(self._uniforms(16))
        return normals

    def _uniforms(self, count: int) -> np.ndarray:
        return (self._bits.random_raw(count) & 0xFFFFFF).astype(np.float32) / np.float32(1 << 24)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    """(16 n,): of each 16 the first 8 give the radius, the others the angle. Rounded to float32 at every step."""
    pairs = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * _float32(np.log, np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    return np.stack([radius * _float32(np.cos, angle), radius * _float32(np.sin, angle)], 1).ravel()


def _float32(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """The float32 next to the true value, whatever this machine's float32 functions do."""
    return function(x.astype(np.float64)).astype(np.float32)


def scaled(key: str, shape: tuple[int, ...], normals: np.ndarray) -> np.ndarray:
    """The tensor that the original made of its normal numbers, but for the last bits."""
    x = normals.reshape(shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return np.abs(x) + np.float32(0.5)
    if leaf == "relative_position_bias_table":
        return x * np.float32(0.5)
    if key.removesuffix(".weight").endswith(TABLES):
        return x * np.float32(0.7)
    if len(shape) == 1:
        norm = leaf == "weight"
        spread = np.float32(0.3 if key.endswith("sampling_offsets.bias") else 0.1)
        return x * spread + np.float32(norm)
    last = key.startswith("predictor.transformer") and key.endswith(("out_proj.weight", "linear2.weight"))
    gain = 0.35 if last else next((g for end, g in GAINS.items() if key.endswith(end)), 1.0)
    return x * np.float32(gain / math.sqrt(math.prod(shape[1:])))


def golden_weights(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Float tensors by key. stored: `ulps`, one whole number for each value in key order, and whole tensors."""
    normals, ulps, weights, at = Normals(SEED), stored["ulps"], {}, 0
    for key in sorted(shapes):
        made = scaled(key, shapes[key], normals(math.prod(shapes[key])))
        steps = ulps[at : at + made.size].reshape(made.shape)
        at += made.size
        weights[key] = stored[key] if key in stored else _stepped(made, steps)
    return weights


def _stepped(x: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """x moved by whole float32 neighbours, away from zero where positive."""
    return (np.ascontiguousarray(x, np.float32).view(np.int32) + steps).view(np.float32)
