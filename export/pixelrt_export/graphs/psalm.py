"""PSALM's graphs: `encoder` (all that depends on the image alone), the language model's head, `pixel_decoder`.

Letters: B images or prompts, T image tokens of the language model, H its width, S new tokens, Q mask queries,
K conditions, D decoder width, d its head width, n_l positions of level l, h x w positions of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pixelrt_export.graph import Graph
from pixelrt_export.graphs.deform_decoder import DeformDecoder
from pixelrt_export.graphs.language import Head, Read
from pixelrt_export.graphs.masked_attention import Predictor, conditioned_linear
from pixelrt_export.graphs.swin import swin_tower
from pixelrt_export.psalm_config import LEVELS, PsalmConfig
from pixelrt_export.psalm_tensors import PROJECTORS

Tensor = Callable[[str], np.ndarray]
BATCH_NORM_EPS = 1e-5


def build_encoder(g: Graph, tensor: Tensor, config: PsalmConfig) -> None:
    """pixels -> image_tokens (B, T, H), mask features at four resolutions, keys and values of every layer."""
    size = config.image_size
    pixels = g.input("pixels", "float32", ["B", 3, size, size])
    if g.activations != "float32":
        pixels = g.cast(pixels, g.activations)
    stages = swin_tower(g, tensor, config, pixels)
    tokens = _projector(g, tensor, config, stages[-1])
    g.output(tokens, "image_tokens", "activations", ["B", config.image_tokens, config.language.hidden])

    mask_features, levels = DeformDecoder(g, tensor, config)(stages)
    predictor = Predictor(g, tensor, config)
    coarse = {f"mask_features.{i}": x for i, x in enumerate(predictor.coarse_features(mask_features))}
    for name, x in ({"mask_features": mask_features} | coarse | predictor.keys(levels)).items():
        g.output(x, name, "activations", ["B", *_feature_shapes(config)[name]])


def _feature_shapes(config: PsalmConfig) -> dict[str, list[int]]:
    """What the pixel decoder takes of an image, without the batch."""
    width, heads, side = config.width, config.heads, config.mask_grid
    areas = [level * level for level in config.levels]
    shapes = {"mask_features": [width, side, side]}
    shapes |= {f"mask_features.{i}": [width, area] for i, area in enumerate(areas)}
    for i in range(config.decoder_layers):
        shapes[f"key.{i}"] = [heads, width // heads, areas[i % LEVELS]]
        shapes[f"value.{i}"] = [heads, areas[i % LEVELS], width // heads]
    return shapes


def _projector(g: Graph, tensor: Tensor, config: PsalmConfig, x: str) -> str:
    """relu(bn2(conv2(conv2(relu(bn1(conv1(x)))))) + bn(downsample(x))), then a Linear: (B, G * G, C) -> (B, T, H).

    conv2 runs twice with the same weights and nothing between: so it was trained. Its norm stays a scale and a
    shift, since folding it would need a second copy of the projector's largest weight.
    """
    block, side = "model.mm_projector.layer1.0", config.swin[-1].grid

    def norm(leaf: str) -> tuple[np.ndarray, np.ndarray]:
        """bn(x) = scale * x + shift."""
        weight, bias, mean, var = (
            tensor(f"{block}.{leaf}.{part}").astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(var + BATCH_NORM_EPS)
        return scale, bias - mean * scale

    def folded(x: str, conv: str, bn: str, **how: Any) -> str:
        def kernel() -> np.ndarray:
            return (tensor(f"{block}.{conv}.weight") * norm(bn)[0][:, None, None, None]).astype(np.float32)

        weight = g.weight(f"mm_projector.{conv}.weight", kernel)
        bias = g.weight(f"mm_projector.{conv}.bias", lambda: norm(bn)[1].astype(np.float32))
        return str(g.op("Conv", x, weight, bias, strides=[2, 2], **how))

    with g.scope("mm_projector"):
        x = g.reshape(g.transpose(x, [0, 2, 1]), [0, 0, side, side])
        y = g.op("Relu", folded(x, "conv1", "bn1", pads=[1, 1, 1, 1]))
        conv2 = g.weight("mm_projector.conv2.weight", lambda: tensor(f"{block}.conv2.weight"))
        for _ in range(2):
            y = g.op("Conv", y, conv2, pads=[1, 1, 1, 1])
        scale = g.weight(
            "mm_projector.bn2.scale", lambda: norm("bn2")[0].astype(np.float32).reshape(-1, 1, 1)
        )
        shift = g.weight(
            "mm_projector.bn2.shift", lambda: norm("bn2")[1].astype(np.float32).reshape(-1, 1, 1)
        )
        y = g.op("Add", g.op("Mul", y, scale), shift)
        y = g.op("Relu", g.op("Add", y, folded(x, "downsample.0", "downsample.1")))
        y = g.transpose(g.reshape(y, [0, 0, -1]), [0, 2, 1])
        fc = "model.mm_projector.fc"
        return g.linear(y, "mm_projector.fc", lambda: tensor(f"{fc}.weight"), lambda: tensor(f"{fc}.bias"))


def condition_head(tensor: Tensor, config: PsalmConfig) -> Head:
    """pool (B, K, S), condition_kind (B,), query_rows (Q,) -> conditions (B, K, D), queries (B, Q, D).

    condition k is the mean of the post-norm states that row k of `pool` weighs, through its kind's projector.
    """
    width = config.width

    def declare(g: Graph) -> Read:
        pool = g.input("pool", "activations", ["B", "K", "S"])
        kind = g.input("condition_kind", "int64", ["B"])
        rows = g.input("query_rows", "int64", ["Q"])

        def stacked(leaf: str) -> Callable[[], np.ndarray]:
            return lambda: np.stack([tensor(f"{name}.{leaf}") for name in PROJECTORS])

        def read(x: str, norm: Callable[[str], str]) -> None:
            states = norm(x)
            conditions = conditioned_linear(
                g,
                g.op("MatMul", pool, states),
                "condition_projector",
                kind,
                stacked("weight"),
                stacked("bias"),
            )
            g.output(conditions, "conditions", "activations", ["B", "K", width])
            weight, bias = (
                lambda leaf=leaf: tensor(f"seg_query_projector.{leaf}") for leaf in ("weight", "bias")
            )
            queries = g.linear(g.op("Gather", states, rows, axis=1), "seg_query_projector", weight, bias)
            g.output(queries, "queries", "activations", ["B", "Q", width])

        return read

    return declare


def build_pixel_decoder(g: Graph, tensor: Tensor, config: PsalmConfig) -> None:
    """queries, conditions, condition_kind and one image's features -> mask_logits (B, Q, h, w), scores (B, Q, K)."""
    width, side, count = config.width, config.mask_grid, config.queries
    queries = g.input("queries", "activations", ["B", count, width])
    conditions = g.input("conditions", "activations", ["B", "K", width])
    kind = g.input("condition_kind", "int64", ["B"])
    features = {
        name: g.input(name, "activations", [1, *shape]) for name, shape in _feature_shapes(config).items()
    }
    predictor = Predictor(g, tensor, config)
    with g.scope("predictor"):
        x = predictor(queries, features, [features[f"mask_features.{level}"] for level in range(LEVELS)])
        masks = g.op("MatMul", predictor.mask_vectors(x), g.reshape(features["mask_features"], [0, 0, -1]))
        scores = predictor.scores(x, kind, conditions)
    g.output(g.reshape(masks, [0, 0, side, side]), "mask_logits", "float32", ["B", count, side, side])
    g.output(scores, "scores", "float32", ["B", count, "K"])
