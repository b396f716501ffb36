"""Deterministic tiny weights for the PixelLM golden run (numpy only).

Every tensor is a pure function of its state-dict key and shape, rounded to float16, so the
weights need not be stored: tensor = fill(key, shape).  numpy's legacy RandomState stream is frozen.
"""

import zlib

import numpy as np

CHAIN_START_NEXT = 300  # next(last prompt token)


def _rs(key):
    return np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)


def fill(key, shape):
    rs = _rs(key)
    shape = tuple(shape)
    x = rs.standard_normal(shape)
    leaf = key.rsplit(".", 1)[-1]
    is_norm = any(
        s in key
        for s in (
            "norm",
            "layrnorm",
            "image_feature_neck.1.",
            "image_feature_neck.3.",
            "output_upscaling.1.",
            "upsample_2x.1.",
            "mask_downscaling.1.",
            "mask_downscaling.4.",
        )
    )
    if "positional_encoding_gaussian_matrix" in key:
        x = x
    elif key.endswith("position_embedding.weight") or key.endswith("class_embedding"):
        x = 0.3 * x
    elif key == "model.embed_tokens.weight":
        x = x
    elif is_norm and leaf == "weight":
        x = 1.0 + 0.1 * x
    elif leaf == "bias":
        x = 0.1 * x
    elif "embed" in key or "iou_token" in key or "mask_tokens" in key or "not_a_point" in key:
        # 4 dimensions: the patch embedding's convolution
        x = x / np.sqrt(np.prod(shape[1:])) if x.ndim == 4 else 0.5 * x
    elif x.ndim == 4:
        fan_in = (
            shape[0] if ("output_upscaling.0" in key or "upsample_2x.0" in key) else int(np.prod(shape[1:]))
        )
        x = x / np.sqrt(fan_in)
    elif x.ndim == 2:
        gain = 1.0
        if key.startswith("model.layers."):
            gain = 0.5 if ("o_proj" in key or "down_proj" in key) else 1.2
        if "vision_model.encoder" in key:
            gain = 0.7 if ("out_proj" in key or "fc2" in key) else 1.0
        if "transformer" in key and ("q_proj" in key or "k_proj" in key):
            gain = 1.5
        if "output_hypernetworks_mlps" in key:
            gain = 1.6
        if "text_hidden_fcs" in key:
            gain = 4.0
        x = gain * x / np.sqrt(shape[1])
    if "output_hypernetworks_mlps" in key and ".layers.2." in key:
        x = x - x.mean(axis=0, keepdims=True)  # zero-mean hyper vectors: masks of both signs
    return x.astype(np.float16)


def lm_head(embed, chain, seed_key="lm_head.weight"):
    """chain: dict token -> next token.  Row[next] ~ sum of embeddings of its predecessors."""
    rs = _rs(seed_key)
    e = embed.astype(np.float32)
    w = 0.01 * rs.standard_normal(e.shape).astype(np.float32)
    for cur, nxt in chain.items():
        w[nxt] += e[cur] / e.shape[1]
    return w.astype(np.float16)
