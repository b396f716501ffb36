"""Every tensor of a PixelLM checkpoint and of its CLIP folder: name -> shape, and the named dead ones."""

from __future__ import annotations

from collections.abc import Mapping

from pixelrt_export.checkpoint import DeadTensor
from pixelrt_export.config import PixelLMConfig

Shapes = dict[str, tuple[int, ...]]

DEAD = (
    DeadTensor.named("model.layers.*.rotary_emb.inv_freq", "recomputed from rope_theta"),
    DeadTensor.named("model.vision_tower.*", "read from the CLIP folder, as the original does"),
    DeadTensor.named("model.prompt_encoder.point_embeddings.*", "prompts by point are never given"),
    DeadTensor.named("model.prompt_encoder.not_a_point_embed.*", "prompts by point are never given"),
    DeadTensor.named("model.prompt_encoder.mask_downscaling.*", "prompts by mask are never given"),
    DeadTensor.named("model.mask_decoder.iou_prediction_head.*", "its output is never read"),
    DeadTensor.named("model.mask_decoder.output_hypernetworks_mlps.[123].*", "only mask token 0 is used"),
)
CLIP_DEAD = (
    DeadTensor.named("vision_model.embeddings.position_ids", "a counter"),
    DeadTensor.named("vision_model.encoder.layers.*", "layers above the deepest one that is read"),
    DeadTensor.named("vision_model.post_layernorm.*", "hidden states are taken before it"),
    DeadTensor.named("text_model.*", "the text tower"),
    DeadTensor.named("visual_projection.*", "CLIP's contrastive head"),
    DeadTensor.named("text_projection.*", "CLIP's contrastive head"),
    DeadTensor.named("logit_scale", "CLIP's contrastive head"),
)


def expected_tensors(config: PixelLMConfig, found: Mapping[str, tuple[int, ...]]) -> Shapes:
    """What the graphs read from the checkpoint. `found` gives the one width no config states, the decoder MLP's."""
    lm, width = config.language, config.decoder_dim
    h, i, kv = lm.hidden, lm.intermediate, lm.kv_heads * lm.head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (lm.vocab, h), "lm_head.weight": (lm.vocab, h), "model.norm.weight": (h,)}
    for n in range(lm.layers):
        p = f"model.layers.{n}"
        shapes |= {
            f"{p}.self_attn.q_proj.weight": (lm.heads * lm.head_dim, h),
            f"{p}.self_attn.k_proj.weight": (kv, h),
            f"{p}.self_attn.v_proj.weight": (kv, h),
            f"{p}.self_attn.o_proj.weight": (h, lm.heads * lm.head_dim),
            f"{p}.mlp.gate_proj.weight": (i, h),
            f"{p}.mlp.up_proj.weight": (i, h),
            f"{p}.mlp.down_proj.weight": (h, i),
            f"{p}.input_layernorm.weight": (h,),
            f"{p}.post_attention_layernorm.weight": (h,),
        }
    for projector in ("mm_projector", "out_mm_projector"):
        shapes |= _linear(f"model.{projector}.0", config.vision.hidden, 2 * h)
        shapes |= _linear(f"model.{projector}.2", 2 * h, h)
    shapes |= _linear("model.text_hidden_fcs.0.0", h, h) | _linear("model.text_hidden_fcs.0.2", h, width)
    neck = "model.image_feature_neck"
    shapes |= {f"{neck}.0.weight": (width, h, 1, 1), f"{neck}.2.weight": (width, width, 3, 3)}
    shapes |= _norm(f"{neck}.1", width) | _norm(f"{neck}.3", width)
    shapes["model.prompt_encoder.no_mask_embed.weight"] = (1, width)
    shapes["model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, width // 2)
    mlp = found.get("model.mask_decoder.transformer.0.layers.0.mlp.lin1.weight", (2048,))[0]
    return shapes | _mask_decoder("model.mask_decoder", width, mlp)


def expected_clip_tensors(config: PixelLMConfig) -> Shapes:
    """What the encoder reads from the CLIP folder: embeddings and the layers up to the deepest feature."""
    v = config.vision
    rows = (v.native_size // v.patch) ** 2 + 1
    embeddings = "vision_model.embeddings"
    shapes: Shapes = {
        f"{embeddings}.class_embedding": (v.hidden,),
        f"{embeddings}.patch_embedding.weight": (v.hidden, 3, v.patch, v.patch),
        f"{embeddings}.position_embedding.weight": (rows, v.hidden),
        **_norm("vision_model.pre_layrnorm", v.hidden),
    }
    for n in range(max(config.deep_layers, config.shallow_layers)):
        p = f"vision_model.encoder.layers.{n}"
        for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{p}.self_attn.{leaf}", v.hidden, v.hidden)
        shapes |= _linear(f"{p}.mlp.fc1", v.hidden, v.mlp) | _linear(f"{p}.mlp.fc2", v.mlp, v.hidden)
        shapes |= _norm(f"{p}.layer_norm1", v.hidden) | _norm(f"{p}.layer_norm2", v.hidden)
    return shapes


def _mask_decoder(name: str, width: int, mlp: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.iou_token.weight": (1, width),
        f"{name}.mask_tokens.weight": (4, width),
        f"{name}.level_embed.weight": (2, width),
        f"{name}.pe1.positional_encoding_gaussian_matrix": (2, width // 2),
        f"{name}.upsample_2x.0.weight": (width, width, 2, 2),
        f"{name}.upsample_2x.0.bias": (width,),
        f"{name}.output_upscaling.0.weight": (width, width // 8, 2, 2),
        f"{name}.output_upscaling.0.bias": (width // 8,),
        **_norm(f"{name}.upsample_2x.1", width),
        **_norm(f"{name}.output_upscaling.1", width // 8),
    }
    hyper = f"{name}.output_hypernetworks_mlps.0.layers"
    for n, out in enumerate((width, width, width // 8)):
        shapes |= _linear(f"{hyper}.{n}", width, out)
    for level in range(2):
        t = f"{name}.transformer.{level}"
        shapes |= _attention(f"{t}.final_attn_token_to_image", width, width // 2) | _norm(f"{t}.norm_final_attn", width)
        for n in range(2):
            b = f"{t}.layers.{n}"
            shapes |= _attention(f"{b}.self_attn", width, width)
            shapes |= _attention(f"{b}.cross_attn_token_to_image", width, width // 2)
            shapes |= _attention(f"{b}.cross_attn_image_to_token", width, width // 2)
            shapes |= _linear(f"{b}.mlp.lin1", width, mlp) | _linear(f"{b}.mlp.lin2", mlp, width)
            for norm in range(1, 5):
                shapes |= _norm(f"{b}.norm{norm}", width)
    return shapes


def _linear(name: str, fan_in: int, fan_out: int) -> Shapes:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int, inner: int) -> Shapes:
    shapes = _linear(f"{name}.out_proj", inner, width)
    for leaf in ("q_proj", "k_proj", "v_proj"):
        shapes |= _linear(f"{name}.{leaf}", width, inner)
    return shapes
