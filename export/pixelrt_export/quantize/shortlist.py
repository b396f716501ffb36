"""The token with the largest logit, exactly, without multiplying with the whole head.

A head of V tokens is the largest matrix that a language model reads for a token, and all but a few of its V products
are thrown away. So it is stored once more in 8 bits, W = scale q + r. Products with scale q are exact integer sums, and
say where each true logit lies:

    |x W_v - near_v| <= |x| e_v,  e_v = |r_v| + what rounding x costs

The shortlist are all tokens that may be among a row's two largest; their part of W is read, and their logits are
those of W. So the two largest logits of every row are what the whole head gives, to a rounding of float32 (of two
that are equal, another may come first), and so are their tokens. All others are off by at most |x| e_v, and below.

Standard operators. x is split in two bytes, 256 high + low, so that its rounding hardly counts; both are unsigned, as
are the weights, since u8 x i8 products saturate on x86 before VNNI.

Letters: B rows, R tokens, H width, V vocabulary, N on the shortlist.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pixelrt_export.graph import Graph, Make
from pixelrt_export.quantize.products import channel_scales, round_channels

NEAR = "language.lm_head.near"  # the head in 8 bits, beside the one that counts
STEPS = 32512  # of x to each side: 127 * 256
MIDDLE = 128  # of unsigned bytes
SLACK = 1.0001  # of e_v, for its own rounding and that of |x|
# Of |x| |W_v|: the errors of a float32 sum of x W_v, 4e-6 with 5,000 products, and those on the way to near_v, 2e-7.
SUMS = 1e-5
BAND = 1024  # tokens at once, for memory


def near_product(g: Graph, x: str, name: str, weight: Make) -> str:
    """x (B, R, H) times a weight (H, V) in 8 bits, one scale a column; sums are exact integers."""
    values = g.stored(f"{name}.weight.uint8", "uint8", lambda: values_of(weight()))
    scales = g.weight(f"{name}.scale", lambda: scales_of(weight()))
    largest = g.op("ReduceMax", g.op("Abs", x), g.constant([-1]), keepdims=1)
    # A maximum may pass over nan, the norm does not: nothing finite is to be made of it.
    spoilt = g.op("Mul", g.op("ReduceL2", x, g.constant([-1]), keepdims=1), g.constant(0.0))
    step = g.op("Div", g.op("Max", largest, g.constant(1e-20)), g.constant(float(STEPS)))
    step = g.op("Add", step, spoilt)
    steps = g.op("Round", g.op("Div", x, step))
    high = g.op("Floor", g.op("Div", g.op("Add", steps, g.constant(128.0)), g.constant(256.0)))
    low = g.op("Sub", steps, g.op("Mul", high, g.constant(256.0)))
    both = g.op("Add", g.op("Concat", high, low, axis=1), g.constant(float(MIDDLE)))
    middle = g.byte(MIDDLE)
    sums = g.op("MatMulInteger", g.cast(both, "uint8"), values, middle, middle)
    high, low = g.op("Split", g.cast(sums, "float32"), axis=1, num_outputs=2, outputs=2)
    joined = g.op("Add", g.op("Mul", high, g.constant(256.0)), low)
    return str(g.op("Mul", g.op("Mul", joined, step), scales))


def values_of(weight: np.ndarray) -> np.ndarray:
    """(H, V) uint8, MIDDLE for 0, of a weight (H, V)."""
    found = np.empty(weight.shape, np.uint8)
    for at, whole in bands(weight):
        found[:, at] = round_channels(whole).astype(np.int16) + MIDDLE
    return found


def scales_of(weight: np.ndarray) -> np.ndarray:
    """(V,)"""
    return np.concatenate([channel_scales(whole) for _, whole in bands(weight)])


def error_bound(weight: np.ndarray) -> np.ndarray:
    """e (V,)"""
    # A step of x is at most |x| / STEPS and each of its values off by half of one.
    rounding = np.sqrt(len(weight)) / (2 * STEPS) + SUMS
    found = []
    for _, whole in bands(weight):
        near = round_channels(whole) * channel_scales(whole).astype(np.float32)
        lost, kept, all_of_it = (
            np.sqrt(np.square(x, dtype=np.float64).sum(0)) for x in (whole - near, near, whole)
        )
        found.append(SLACK * (lost + rounding * np.maximum(kept, all_of_it)))
    return np.concatenate(found).astype(np.float32)


def bands(weight: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """A few columns at a time, in float32, as they are in the 16 bits that the head is stored in."""
    for start in range(0, weight.shape[1], BAND):
        at = slice(start, start + BAND)
        yield at, weight[:, at].astype(np.float32).astype(np.float16).astype(np.float32)


def whole_product(g: Graph, x: str, name: str, weight: Make) -> str:
    """x (B, R, H) times a head (H, V) that is stored token by token, and not turned round: that would be a copy."""
    rows = _rows(g, name, lambda: weight().T)
    wide = rows if g.storage == g.activations else g.cast(rows, g.activations)
    return g.transpose(g.op("MatMul", wide, g.transpose(x, [0, 2, 1])), [0, 2, 1])


def _rows(g: Graph, name: str, weight: Make) -> str:
    """The head (V, H): a token's values lie in one or two pages of the file, and not each in another."""
    return g.stored(f"{name}.rows", g.storage, weight)


def shortlist_logits(g: Graph, x: str, name: str, weight: Make) -> str:
    """x (B, R, H) times the weight (V, H) of the head `name`, exact where it may be one of a row's two largest."""
    near = g.linear(x, NEAR, weight)  # as the plan says: near_product
    bound = g.stored(f"{NEAR}.bound", "float32", lambda: error_bound(weight().T))
    off = g.op("Mul", g.op("ReduceL2", x, g.constant([-1]), keepdims=1), bound)
    # At least two tokens reach the second largest of what each surely has.
    best, _ = g.op("TopK", g.op("Sub", near, off), g.constant([2]), axis=-1, outputs=2)
    ahead = g.op("Sub", g.op("Add", near, off), g.slice(best, -1, 1, 2))
    # Row by row: a maximum over rows would keep the nan of one.
    wanted = g.cast(g.op("GreaterOrEqual", ahead, g.constant(0.0)), "int32")
    chosen = g.op("NonZero", g.op("ReduceMax", wanted, g.constant([0, 1]), keepdims=0))
    tokens = g.op("Squeeze", chosen, g.constant([0]))
    chosen_rows = g.cast(g.op("Gather", _rows(g, name, weight), tokens, axis=0), g.activations)
    exact = g.op("MatMul", x, g.transpose(chosen_rows, [1, 0]))
    places = g.op("Expand", tokens, g.op("Shape", exact))
    return str(g.op("ScatterElements", near, places, exact, axis=-1))
