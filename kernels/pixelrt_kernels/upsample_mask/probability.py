"""p(x) = 1 / (1 + e(-x)), e(z) = 2^k * poly(z - k ln 2), k = round(z / ln 2)     (numpy, the specification)

`exp` of two libraries differs in its last bit, and an arg max between masks shows it. So it is spelled out: every
line below is one float32 operation, rounded to nearest even, and kernel.cuh does the same ones in the same order.
Against the true value p is off by 1e-7 at most. z is held in -87..87, where 2^k is a normal number; p(nan) is nan.

Source: the reduction and the polynomial are those of `expf` in the Cephes library.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LIMIT = np.float32(87)
LOG2_E = np.float32(1.44269504088896341)
# Added to a number below 2^22 it leaves the nearest whole number in the low bits of the sum.
ROUNDER = np.float32(12582912)  # 1.5 * 2^23
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # k * LN2_HIGH is exact
POLYNOMIAL = [
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
]
BLOCK = 1 << 14  # values at a time: the steps below stay in the cache


def probability(logits: Floats) -> Floats:
    """float32 of any shape and sign, to float32 of that shape."""
    flat = np.ascontiguousarray(logits, np.float32).reshape(-1)
    out = np.empty_like(flat)
    for start in range(0, len(flat), BLOCK):
        out[start : start + BLOCK] = _block(flat[start : start + BLOCK])
    return out.reshape(logits.shape)


def _block(x: Floats) -> Floats:
    z = np.minimum(np.maximum(-x, -LIMIT), LIMIT)
    biased = z * LOG2_E
    biased += ROUNDER
    k = biased - ROUNDER
    z -= k * LN2_HIGH
    z -= k * LN2_LOW
    y = np.full_like(z, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        y *= z
        y += coefficient
    y *= z
    y *= z
    y += z
    y += np.float32(1)
    power = biased.view(np.int32) - ROUNDER.view(np.int32) + np.int32(127)
    y *= (power << 23).view(np.float32)
    y += np.float32(1)
    return np.asarray(np.float32(1) / y, np.float32)
