"""Which tensors a PSALM checkpoint holds, what they measure, and which of them are dead."""

from __future__ import annotations

from collections.abc import Mapping

from pixelrt_export.checkpoint import DeadTensor
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.psalm_config import LEVELS, POINTS, STAGES, PsalmConfig, SwinStage
from pixelrt_export.shards import Shape

Shapes = dict[str, Shape]

PROJECTORS = ("class_name_projector", "SEG_token_projector", "region_projector")  # in the order of CONDITIONS
PROJECTIONS = ("CLASS_proj", "SEG_proj", "REGION_proj")  # the predictor's, in the same order

DEAD_TENSORS = (
    DeadTensor.named("lm_head.weight", "no text is generated"),
    DeadTensor.named("predictor.query_feat.weight", "queries come from the language model"),
    DeadTensor.named("predictor.SEG_query_embed.weight", "used only where conditions join the queries"),
    DeadTensor.named("*.attn.relative_position_index", "a buffer: computed from the window"),
    DeadTensor.named("*.num_batches_tracked", "a counter of training"),
)
STALE_LINEARS, STALE_SCALARS = 3, 2
STALE = "a leftover of training in the published file, which PSALM's own code ignores too"


def dead_tensors(config: PsalmConfig, found: Mapping[str, Shape]) -> tuple[DeadTensor, ...]:
    """The named ones, and the eight of the published file whose names nobody knows.

    These are three Linears H x H with their biases and two scalars. A weight without its bias, a fourth Linear, a
    third scalar or anything else stays an error.
    """
    hidden = config.language.hidden
    expected = psalm_tensors(config, found)
    stems = [
        key.removesuffix(".weight")
        for key, shape in found.items()
        if key.endswith(".weight") and shape == (hidden, hidden) and key not in expected
    ]
    paired = {
        f"{stem}.{leaf}"
        for stem in stems
        if found.get(f"{stem}.bias") == (hidden,)
        for leaf in ("weight", "bias")
    }
    return (
        *DEAD_TENSORS,
        DeadTensor(STALE, lambda key, shape: key in paired, 2 * STALE_LINEARS),
        DeadTensor(STALE, lambda key, shape: shape in ((), (1,)), STALE_SCALARS),
    )


def psalm_tensors(config: PsalmConfig, found: Mapping[str, Shape]) -> Shapes:
    """Name -> shape of all that the graphs read. Widths of MLPs stand in no config.json: `found` tells."""
    hidden, width = config.language.hidden, config.width
    shapes = phi_tensors(config.language)
    shapes |= swin_tensors(config, found)
    shapes |= projector_tensors(config.swin[-1].width, hidden, found)
    shapes["seg_query"] = (config.queries, hidden)
    for name in ("seg_query_projector", *PROJECTORS):
        shapes |= _linear(name, hidden, width)
    shapes |= _pixel_decoder_tensors(config, found)
    return shapes | _predictor_tensors(config, found)


def phi_tensors(language: LanguageConfig) -> Shapes:
    hidden, mlp = language.hidden, language.intermediate
    shapes: Shapes = {"model.embed_tokens.weight": (language.vocab, hidden)}
    shapes |= _norm("model.final_layernorm", hidden)
    for i in range(language.layers):
        layer = f"model.layers.{i}"
        shapes |= _norm(f"{layer}.input_layernorm", hidden)
        shapes |= _linear(f"{layer}.self_attn.query_key_value", hidden, 3 * hidden)
        shapes |= _linear(f"{layer}.self_attn.dense", hidden, hidden)
        shapes |= _linear(f"{layer}.mlp.fc1", hidden, mlp) | _linear(f"{layer}.mlp.fc2", mlp, hidden)
    return shapes


def swin_tensors(config: PsalmConfig, found: Mapping[str, Shape]) -> Shapes:
    tower, first = "model.vision_tower", config.swin[0].width
    shapes: Shapes = {
        f"{tower}.patch_embed.proj.weight": (first, 3, config.patch, config.patch),
        f"{tower}.patch_embed.proj.bias": (first,),
    }
    shapes |= _norm(f"{tower}.patch_embed.norm", first)
    for i, stage in enumerate(config.swin):
        layer = f"{tower}.layers.{i}"
        for block in range(stage.depth):
            shapes |= _swin_block(f"{layer}.blocks.{block}", stage, found)
        shapes |= _norm(f"{tower}.norm{i}", stage.width)
        if i < STAGES - 1:
            shapes |= _norm(f"{layer}.downsample.norm", 4 * stage.width)
            shapes[f"{layer}.downsample.reduction.weight"] = (config.swin[i + 1].width, 4 * stage.width)
    return shapes


def _swin_block(name: str, stage: SwinStage, found: Mapping[str, Shape]) -> Shapes:
    width = stage.width
    mlp = _rows(found, f"{name}.mlp.fc1.weight", 4 * width)
    return {
        f"{name}.attn.relative_position_bias_table": ((2 * stage.window - 1) ** 2, stage.heads),
        **_norm(f"{name}.norm1", width),
        **_norm(f"{name}.norm2", width),
        **_linear(f"{name}.attn.qkv", width, 3 * width),
        **_linear(f"{name}.attn.proj", width, width),
        **_linear(f"{name}.mlp.fc1", width, mlp),
        **_linear(f"{name}.mlp.fc2", mlp, width),
    }


def projector_tensors(width: int, hidden: int, found: Mapping[str, Shape]) -> Shapes:
    block = "model.mm_projector.layer1.0"
    inner = _rows(found, f"{block}.conv1.weight", hidden)
    return {
        f"{block}.conv1.weight": (inner, width, 3, 3),
        f"{block}.conv2.weight": (inner, inner, 3, 3),
        f"{block}.downsample.0.weight": (inner, width, 1, 1),
        **_batch_norm(f"{block}.bn1", inner),
        **_batch_norm(f"{block}.bn2", inner),
        **_batch_norm(f"{block}.downsample.1", inner),
        **_linear("model.mm_projector.fc", inner, hidden),
    }


def _pixel_decoder_tensors(config: PsalmConfig, found: Mapping[str, Shape]) -> Shapes:
    width, name = config.width, "pixel_decoder"
    samples = config.heads * LEVELS * POINTS
    shapes: Shapes = {f"{name}.transformer.level_embed": (LEVELS, width)}
    for i, stage in enumerate(config.swin[:0:-1]):  # top-down: 0 reads Swin's last stage
        shapes |= _conv_norm(f"{name}.input_proj.{i}", stage.width, width, 1)
    shapes |= _conv_norm(f"{name}.adapter_1", config.swin[0].width, width, 1)
    shapes |= _conv_norm(f"{name}.layer_1", width, width, 3)
    shapes |= {f"{name}.mask_features.weight": (width, width, 1, 1), f"{name}.mask_features.bias": (width,)}
    for i in range(config.encoder_layers):
        layer = f"{name}.transformer.encoder.layers.{i}"
        mlp = _rows(found, f"{layer}.linear1.weight", 4 * width)
        shapes |= _linear(f"{layer}.self_attn.sampling_offsets", width, 2 * samples)
        shapes |= _linear(f"{layer}.self_attn.attention_weights", width, samples)
        shapes |= _linear(f"{layer}.self_attn.value_proj", width, width)
        shapes |= _linear(f"{layer}.self_attn.output_proj", width, width)
        shapes |= _linear(f"{layer}.linear1", width, mlp) | _linear(f"{layer}.linear2", mlp, width)
        shapes |= _norm(f"{layer}.norm1", width) | _norm(f"{layer}.norm2", width)
    return shapes


def _predictor_tensors(config: PsalmConfig, found: Mapping[str, Shape]) -> Shapes:
    width, name = config.width, "predictor"
    shapes: Shapes = {
        f"{name}.query_embed.weight": (config.queries, width),
        f"{name}.level_embed.weight": (LEVELS, width),
        **_norm(f"{name}.decoder_norm", width),
    }
    for i in range(3):
        shapes |= _linear(f"{name}.mask_embed.layers.{i}", width, width)
    for projection in PROJECTIONS:
        for i in range(2):
            shapes |= _linear(f"{name}.{projection}.layers.{i}", width, width)
    for i in range(config.decoder_layers):
        for kind, leaf in (("cross_attention", "multihead_attn"), ("self_attention", "self_attn")):
            layer = f"{name}.transformer_{kind}_layers.{i}"
            shapes |= {
                f"{layer}.{leaf}.in_proj_weight": (3 * width, width),
                f"{layer}.{leaf}.in_proj_bias": (3 * width,),
                **_linear(f"{layer}.{leaf}.out_proj", width, width),
                **_norm(f"{layer}.norm", width),
            }
        layer = f"{name}.transformer_ffn_layers.{i}"
        mlp = _rows(found, f"{layer}.linear1.weight", 8 * width)
        shapes |= _linear(f"{layer}.linear1", width, mlp) | _linear(f"{layer}.linear2", mlp, width)
        shapes |= _norm(f"{layer}.norm", width)
    return shapes


def _rows(found: Mapping[str, Shape], name: str, default: int) -> int:
    """Outputs of a layer; the release's where the file does not hold it."""
    shape = found.get(name, ())
    return shape[0] if shape else default


def _conv_norm(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    weight = {f"{name}.0.weight": (outputs, inputs, kernel, kernel), f"{name}.0.bias": (outputs,)}
    return weight | _norm(f"{name}.1", outputs)


def _batch_norm(name: str, width: int) -> Shapes:
    return {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
