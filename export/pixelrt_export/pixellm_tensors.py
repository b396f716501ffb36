"""Which tensors a PixelLM checkpoint holds, what they measure, and which of them are dead."""

from __future__ import annotations

from collections.abc import Mapping

from pixelrt_export.checkpoint import DeadTensor
from pixelrt_export.config import LanguageConfig, PixelLMConfig
from pixelrt_export.shards import Shape

Shapes = dict[str, Shape]

MASK_TOKENS = 4  # SAM's count, in every PixelLM; only the first mask is read
POINT_KINDS = 4

DEAD_TENSORS = (
    DeadTensor.named("model.layers.*.self_attn.rotary_emb.inv_freq", "a buffer: computed from rope_theta"),
    DeadTensor.named("model.mask_decoder.iou_prediction_head.*", "scores come from the masks themselves"),
    *(
        DeadTensor.named(f"model.mask_decoder.output_hypernetworks_mlps.{i}.*", "only mask 0 is used")
        for i in range(1, MASK_TOKENS)
    ),
    DeadTensor.named("model.prompt_encoder.mask_downscaling.*", "no mask is ever a prompt"),
    DeadTensor.named("model.prompt_encoder.point_embeddings.*", "no point is ever a prompt"),
    DeadTensor.named("model.prompt_encoder.not_a_point_embed.weight", "no point is ever a prompt"),
    DeadTensor.named("model.vision_tower.*", "CLIP is read from its own folder, as PixelLM does"),
)


def pixellm_tensors(config: PixelLMConfig, found: Mapping[str, Shape]) -> Shapes:
    """Name -> shape of all that the graphs read.

    Depth and MLP width of the mask decoder stand in no config.json: the first transformer found tells.
    """
    hidden, width, scales = config.language.hidden, config.decoder_dim, config.scales
    shapes = llama_tensors(config.language)
    for name in ("mm_projector", "out_mm_projector"):
        shapes |= _linear(f"model.{name}.0", config.vision.hidden, config.projector_hidden)
        shapes |= _linear(f"model.{name}.2", config.projector_hidden, hidden)
    shapes |= _linear("model.text_hidden_fcs.0.0", hidden, hidden) | _linear(
        "model.text_hidden_fcs.0.2", hidden, width
    )
    shapes["model.image_feature_neck.0.weight"] = (width, hidden, 1, 1)
    shapes["model.image_feature_neck.2.weight"] = (width, width, 3, 3)
    shapes |= _norm("model.image_feature_neck.1", width) | _norm("model.image_feature_neck.3", width)
    shapes["model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, width // 2)
    shapes["model.prompt_encoder.no_mask_embed.weight"] = (1, width)

    decoder = "model.mask_decoder"
    shapes[f"{decoder}.pe1.positional_encoding_gaussian_matrix"] = (2, width // 2)
    for name, rows in (("iou_token", 1), ("mask_tokens", MASK_TOKENS), ("level_embed", scales)):
        shapes[f"{decoder}.{name}.weight"] = (rows, width)
    for name, out in (("output_upscaling", width // 8), ("upsample_2x", width)):
        shapes |= {f"{decoder}.{name}.0.weight": (width, out, 2, 2), f"{decoder}.{name}.0.bias": (out,)}
        shapes |= _norm(f"{decoder}.{name}.1", out)
    for i, out in enumerate((width, width, width // 8)):
        shapes |= _linear(f"{decoder}.output_hypernetworks_mlps.0.layers.{i}", width, out)
    for scale in range(scales):
        shapes |= _two_way_tensors(f"{decoder}.transformer.{scale}", width, *decoder_depth_and_mlp(found))
    return shapes


def decoder_depth_and_mlp(found: Mapping[str, Shape]) -> tuple[int, int]:
    """Blocks of one two-way transformer and their MLP's width; SAM's 2 and 2048 where the file holds none."""
    name = "model.mask_decoder.transformer.0.layers.{}.mlp.lin1.weight"
    depth = next(i for i in range(len(found) + 1) if name.format(i) not in found)
    return (depth, found[name.format(0)][0]) if depth else (2, 2048)


def llama_tensors(language: LanguageConfig) -> Shapes:
    hidden, mlp = language.hidden, language.intermediate
    queries, keys = language.heads * language.head_dim, language.kv_heads * language.head_dim
    table = (language.vocab, hidden)
    shapes: Shapes = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table,
        "model.norm.weight": (hidden,),
    }
    for i in range(language.layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (queries, hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, queries),
            f"{layer}.mlp.gate_proj.weight": (mlp, hidden),
            f"{layer}.mlp.up_proj.weight": (mlp, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, mlp),
        }
    return shapes


def _two_way_tensors(name: str, width: int, depth: int, mlp: int) -> Shapes:
    shapes = _attention(f"{name}.final_attn_token_to_image", width, width // 2) | _norm(
        f"{name}.norm_final_attn", width
    )
    for i in range(depth):
        block = f"{name}.layers.{i}"
        shapes |= _attention(f"{block}.self_attn", width, width)
        shapes |= _attention(f"{block}.cross_attn_token_to_image", width, width // 2)
        shapes |= _attention(f"{block}.cross_attn_image_to_token", width, width // 2)
        shapes |= _linear(f"{block}.mlp.lin1", width, mlp) | _linear(f"{block}.mlp.lin2", mlp, width)
        for norm in range(1, 5):
            shapes |= _norm(f"{block}.norm{norm}", width)
    return shapes


def _attention(name: str, width: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for part in "qkv":
        shapes |= _linear(f"{name}.{part}_proj", width, inner)
    return shapes | _linear(f"{name}.out_proj", inner, width)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
