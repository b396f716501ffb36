"""PixelLM's two vision graphs: `encoder` (all that depends on the image alone) and `pixel_decoder`.

Letters: B images, N targets, S image side, G patches a side, P = G * G, T = (G / 2)^2 image tokens of the
language model, H its width, D decoder width. Image positions are kept channels-last, (…, positions, D).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pixelrt_export.config import PixelLMConfig
from pixelrt_export.graph import Graph
from pixelrt_export.graphs.clip import clip_tower
from pixelrt_export.graphs.fuse_scales import fuse_scales
from pixelrt_export.graphs.two_way import TwoWay

Tensor = Callable[[str], np.ndarray]
FIRST = ("level0_key", "level0_value", "level0_query")  # what block 0 projects from scale 0


def build_encoder(g: Graph, tensor: Tensor, clip: Tensor, config: PixelLMConfig, depth: int) -> None:
    """pixels, patch_valid -> image_tokens (B, T, H) and the pixel decoder's view of the image.

    Besides the features of both scales it holds what the first decoder block projects from scale 0, since that
    too is the same for every question. depth: blocks of the decoder's transformers.
    """
    size, grid, width = config.image_size, config.grid, config.decoder_dim
    patches, inner = grid * grid, width // 2
    pixels = g.input("pixels", "float32", ["B", 3, size, size])
    patch_valid = g.input("patch_valid", "bool", ["B", 1 + patches])
    if g.activations != "float32":
        pixels = g.cast(pixels, g.activations)

    layers = (config.deep_layers, config.shallow_layers)
    deep, shallow = clip_tower(g, clip, config.vision, grid, layers, pixels, patch_valid)
    g.output(
        _image_tokens(g, tensor, config, deep),
        "image_tokens",
        "activations",
        ["B", config.image_tokens, config.language.hidden],
    )
    level0, level1 = _mask_features(g, tensor, config, deep, shallow)
    first = transformer(g, tensor, config, 0, depth).first_keys(level0, _positions(g, tensor, config, 0))
    g.output(level0, "level0", "activations", ["B", patches, width])
    for name, projected in zip(FIRST, first, strict=True):
        g.output(projected, name, "activations", ["B", patches, inner])
    g.output(level1, "level1", "activations", ["B", 4 * patches, width])


def _image_tokens(g: Graph, tensor: Tensor, config: PixelLMConfig, deep: str) -> str:
    """Mean of each 2 x 2 block of patches (what the original's bilinear halving is), then the projector."""
    half = config.grid // 2
    with g.scope("mm_projector"):
        blocks = g.reshape(deep, [0, half, 2, half, 2, -1])
        pooled = g.op("ReduceMean", blocks, g.constant([2, 4]), keepdims=0)
        pooled = g.reshape(pooled, [0, half * half, -1])
        return _linear(g, tensor, _projector_hidden(g, tensor, "mm_projector", pooled), "mm_projector.2")


def _projector_hidden(g: Graph, tensor: Tensor, name: str, x: str) -> str:
    return str(g.op("Gelu", _linear(g, tensor, x, f"{name}.0")))


def _linear(g: Graph, tensor: Tensor, x: str, name: str) -> str:
    return g.linear(x, name, lambda: tensor(f"model.{name}.weight"), lambda: tensor(f"model.{name}.bias"))


def _mask_features(
    g: Graph, tensor: Tensor, config: PixelLMConfig, deep: str, shallow: str
) -> tuple[str, str]:
    """Scale 0 (B, P, D) with the dense prompt added, scale 1 (B, 4 P, D) upsampled but not yet modulated.

    The neck's 1x1 convolution is folded into the projector's second layer, W = Wc W2 and b = Wc b2: the wide
    (P, H) feature map is never made.
    """
    grid, width = config.grid, config.decoder_dim
    neck, second = "model.image_feature_neck", "model.out_mm_projector.2"

    def folded(leaf: str) -> np.ndarray:
        narrow = tensor(f"{neck}.0.weight").astype(np.float64)[:, :, 0, 0]
        return (narrow @ tensor(f"{second}.{leaf}").astype(np.float64)).astype(np.float32)

    def norm(x: str, index: int) -> str:
        key = f"{neck}.{index}"
        return g.layer_norm(
            x, f"neck.{index}", lambda: tensor(f"{key}.weight"), lambda: tensor(f"{key}.bias"), 1e-6
        )

    with g.scope("neck"):
        both = g.op("Concat", deep, shallow, axis=0)
        x = _projector_hidden(g, tensor, "out_mm_projector", both)
        x = norm(g.linear(x, "neck.0", lambda: folded("weight"), lambda: folded("bias")), 1)
        x = g.reshape(g.transpose(x, [0, 2, 1]), [0, 0, grid, grid])
        x = g.op("Conv", x, g.weight("neck.2.weight", lambda: tensor(f"{neck}.2.weight")), pads=[1, 1, 1, 1])
        x = norm(g.transpose(g.reshape(x, [0, 0, -1]), [0, 2, 1]), 3)
        level0, level1 = g.op("Split", x, axis=0, num_outputs=2, outputs=2)
        level0 = g.op("Add", level0, _dense_prompt(g, tensor, width))
    with g.scope("upsample_2x"):
        level1 = _shuffle(g, _upscale(g, tensor, level1, "mask_decoder.upsample_2x"), grid, width)
        return level0, level1


def _upscale(g: Graph, tensor: Tensor, x: str, name: str) -> str:
    """ConvTranspose 2x2 stride 2, LayerNorm over channels, GELU: (·, P, D) -> (·, P, 4, channels).

    A transposed convolution whose windows do not overlap is one linear layer; the four fine pixels under each
    coarse one come in the order (dy, dx) and `_shuffle` puts them in their places.
    """
    key = f"model.{name}"

    def weight() -> np.ndarray:  # (in, out, dy, dx) -> (dy * dx * out, in)
        w = tensor(f"{key}.0.weight")
        return w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])

    x = g.linear(x, f"{name}.0", weight, lambda: np.tile(tensor(f"{key}.0.bias"), 4))
    x = g.layer_norm(
        g.reshape(x, [0, 0, 4, -1]),
        f"{name}.1",
        lambda: tensor(f"{key}.1.weight"),
        lambda: tensor(f"{key}.1.bias"),
        1e-6,
    )
    return str(g.op("Gelu", x))


def _shuffle(g: Graph, x: str, grid: int, channels: int) -> str:
    """(·, grid^2, 4, channels) -> (·, (2 grid)^2, channels), row-major."""
    x = g.transpose(g.reshape(x, [-1, grid, grid, 2, 2, channels]), [0, 1, 3, 2, 4, 5])
    return g.reshape(x, [-1, 4 * grid * grid, channels])


def _dense_prompt(g: Graph, tensor: Tensor, width: int) -> str:
    key = "model.prompt_encoder.no_mask_embed.weight"
    return g.weight("no_mask_embed", lambda: tensor(key).reshape(1, 1, width))


def dense_positions(gaussian: np.ndarray, grid: int) -> np.ndarray:
    """PE = (sin v, cos v), v = 2 pi (2 c - 1) G at cell centres c = (x, y): (1, grid * grid, D)."""
    centres = (np.arange(grid, dtype=np.float32) + np.float32(0.5)) / np.float32(grid)
    y, x = np.meshgrid(centres, centres, indexing="ij")
    v = np.float32(2 * np.pi) * ((2 * np.stack([x, y], -1) - 1) @ gaussian.astype(np.float32))
    return np.concatenate([np.sin(v), np.cos(v)], -1).reshape(1, grid * grid, -1).astype(np.float32)


def _positions(g: Graph, tensor: Tensor, config: PixelLMConfig, level: int) -> str:
    """Dense positional encoding of a level; the two levels have different random matrices and grids."""
    layer = "prompt_encoder.pe_layer" if level == 0 else "mask_decoder.pe1"
    key = f"model.{layer}.positional_encoding_gaussian_matrix"
    return g.weight(
        f"dense_positions.{level}", lambda: dense_positions(tensor(key), config.grid * (1 + level))
    )


def transformer(g: Graph, tensor: Tensor, config: PixelLMConfig, level: int, depth: int) -> TwoWay:
    name = f"mask_decoder.transformer.{level}"
    return TwoWay(g, tensor, name, f"model.{name}", config.decoder_heads, config.decoder_dim, depth)


def build_pixel_decoder(g: Graph, tensor: Tensor, config: PixelLMConfig, depth: int) -> None:
    """seg_hidden and one image's features -> low_res_masks (N, 4 G, 4 G) logits.

    seg_hidden (N, 2, K, H): for each target and scale the hidden states that predicted its K tokens.
    """
    grid, width, hidden = config.grid, config.decoder_dim, config.language.hidden
    patches, inner, count = grid * grid, width // 2, config.tokens_per_scale
    seg_hidden = g.input("seg_hidden", "activations", ["N", 2, count, hidden])
    level0 = g.input("level0", "activations", [1, patches, width])
    key, value, query = (g.input(name, "activations", [1, patches, inner]) for name in FIRST)
    level1 = g.input("level1", "activations", [1, 4 * patches, width])

    with g.scope("text_hidden_fcs"):
        x = g.op("Relu", _linear(g, tensor, seg_hidden, "text_hidden_fcs.0.0"))
        x = _linear(g, tensor, x, "text_hidden_fcs.0.2")
        # 1/6 and not 1/3: the original divides by all tokens of the target, then adds only one scale's.
        share = g.constant(1.0 / (2 * count)) if count > 1 else g.constant(1.0)
        fused = g.op("Mul", g.op("ReduceSum", x, g.constant([2]), keepdims=0), share)  # (N, 2, D)

    with g.scope("level0"):
        two_way = transformer(g, tensor, config, 0, depth)
        coarse = _level(g, tensor, config, two_way, 0, fused, level0, (key, value, query))
    with g.scope("level1"):
        previous = g.reshape(coarse, [0, -1, 1])
        previous = previous if g.activations == "float32" else g.cast(previous, "float32")
        image = g.call(fuse_scales(g.opset), previous, level1, _dense_prompt(g, tensor, width))
        fine = _level(g, tensor, config, transformer(g, tensor, config, 1, depth), 1, fused, image, None)

    scales = g.op("Concat", g.constant([1, 1]), g.constant([2, 2]), axis=0)
    scales = g.cast(scales, "float32")
    coarse = g.reshape(coarse, [0, 1, 2 * grid, 2 * grid])
    coarse = g.op("Resize", coarse, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    half = g.constant(0.5)
    fine = g.reshape(fine, [0, 1, 4 * grid, 4 * grid])
    masks = g.op("Add", g.op("Mul", coarse, half), g.op("Mul", fine, half))
    g.output(g.reshape(masks, [0, 4 * grid, 4 * grid]), "low_res_masks", "float32", ["N", 4 * grid, 4 * grid])


def _level(
    g: Graph,
    tensor: Tensor,
    config: PixelLMConfig,
    two_way: TwoWay,
    level: int,
    fused: str,
    image: str,
    first: tuple[str, str, str] | None,
) -> str:
    """Mask logits of one level, (N, 2 g * 2 g, 1) for a level of g x g positions."""
    grid, width, md = config.grid * (1 + level), config.decoder_dim, "model.mask_decoder"
    positions = _positions(g, tensor, config, level)

    def level_row() -> np.ndarray:
        return tensor(f"{md}.level_embed.weight")[level].reshape(1, 1, width)

    def constant_tokens() -> np.ndarray:
        rows = np.concatenate([tensor(f"{md}.iou_token.weight"), tensor(f"{md}.mask_tokens.weight")])
        return rows.astype(np.float32)[None] + level_row().astype(np.float32)

    prompt = g.op("Add", g.slice(fused, 1, level, level + 1), g.weight(f"level_embed.{level}", level_row))
    shape = g.op("Concat", g.op("Shape", fused, start=0, end=1), g.constant([5, width]), axis=0)
    rows = g.op("Expand", g.weight(f"mask_decoder.tokens.{level}", constant_tokens), shape)
    tokens = g.op("Concat", rows, prompt, axis=1)  # iou, four mask tokens, prompt: (N, 6, D)

    tokens, image = two_way(tokens, image, positions, first or two_way.first_keys(image, positions))

    with g.scope("mask"):
        x = g.slice(tokens, 1, 1, 2)  # mask token 0; the original drops the other three masks
        for i in range(3):
            name = f"mask_decoder.output_hypernetworks_mlps.0.layers.{i}"
            x = _linear(g, tensor, x, name)
            x = g.op("Relu", x) if i < 2 else x
        up = _upscale(g, tensor, image, "mask_decoder.output_upscaling")
        # The dot product before the shuffle: one channel to move instead of D / 8.
        up = g.reshape(up, [0, 4 * grid * grid, -1])
        mask = g.op("MatMul", up, g.transpose(x, [0, 2, 1]))
        return _shuffle(g, g.reshape(mask, [0, grid * grid, 4, 1]), grid, 1)
