"""PSALM's torch reference against the outputs of the original code (tests/golden/psalm)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("safetensors", reason="needs the export extra")

from pixelrt_export.reference.deform_attn import deform_attn  # noqa: E402
from pixelrt_export.reference.masked_decoder import Prediction  # noqa: E402
from pixelrt_export.reference.psalm import ImageFeatures, Psalm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

# kind, what the language model makes of the conditions, what the predictor makes of the scores
CASES = {
    "panoptic": (0, "class_name_embedding", "pred_class_name_logits"),
    "semantic": (0, "class_name_embedding", "pred_class_name_logits"),
    "referring": (1, "SEG_embedding", "pred_SEG_logits"),
    "region_box": (2, "region_embedding_list", "pred_region_logits"),
    "video": (2, "region_embedding_list", "pred_region_logits"),
}
# As for the graphs: both sides are fp32 and sum in different orders, the largest values are 2 to 18.
TOLERANCE = {"swin": 1e-5, "tokens": 1e-5, "features": 2e-5, "hidden": 1e-5, "masks": 1e-4, "scores": 6e-5}


def close(got: torch.Tensor, want: np.ndarray, what: str) -> None:
    want = want if want.ndim == got.ndim else want[None]
    np.testing.assert_allclose(got.detach().numpy(), want, atol=TOLERANCE[what], rtol=0)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: x for file in folder.glob("*.safetensors") for key, x in load_file(file).items()}


@pytest.fixture(scope="module")
def net(golden_psalm_checkpoint: Path) -> Psalm:
    config = json.loads((golden_psalm_checkpoint / "config.json").read_text())
    return Psalm.from_tensors(config, read_tensors(golden_psalm_checkpoint))


@pytest.fixture(scope="module")
def features(net: Psalm, golden_psalm_case) -> ImageFeatures:
    return net.encode(torch.from_numpy(golden_psalm_case("panoptic")["in.images"]))


def test_names_are_the_release_s(net: Psalm, golden_psalm: Path) -> None:
    """But for buffers, and for layers that the tiny configuration has fewer of."""
    buffers = ("relative_position_index",)
    stored = json.loads((golden_psalm / "weights_sha256.json").read_text())
    assert set(net.state_dict()) == {key for key in stored if not key.endswith(buffers)}
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == {
        k: shape for k, (shape, _) in stored.items() if not k.endswith(buffers)
    }


def test_a_strange_or_a_lacking_tensor_is_an_error(net: Psalm, golden_psalm_checkpoint: Path) -> None:
    config = json.loads((golden_psalm_checkpoint / "config.json").read_text())
    tensors = read_tensors(golden_psalm_checkpoint)
    with pytest.raises(KeyError, match="belongs to no part"):
        Psalm.from_tensors(config, tensors | {"model.extra": torch.zeros(3, 3)})
    del tensors["predictor.decoder_norm.bias"]
    with pytest.raises(KeyError, match=r"lacks predictor\.decoder_norm\.bias"):
        Psalm.from_tensors(config, tensors)


def test_encoder(features: ImageFeatures, golden_psalm_case) -> None:
    want = golden_psalm_case("panoptic")
    for i, stage in enumerate(features.stages):
        close(stage, want[f"swin.res{i + 2}"], "swin")
    close(features.tokens, want["projector.out"], "tokens")
    close(features.mask_features, want["pixel_decoder.mask_features"], "features")
    for i, level in enumerate(features.levels):
        close(level, want[f"pixel_decoder.multi_scale.{i}"], "features")


def test_image_tokens_of_both_pictures(net: Psalm, golden_psalm_case) -> None:
    want = golden_psalm_case("video")
    close(net.encode(torch.from_numpy(want["in.vp_images"])).tokens, want["projector.out"], "tokens")
    close(net.encode(torch.from_numpy(want["in.images"])).tokens, want["projector.out_first"], "tokens")


def test_deformable_attention_alone(golden_psalm: Path) -> None:
    with np.load(golden_psalm / "op_msdeform.npz") as want:
        value, places, weights = (
            torch.from_numpy(want[name]) for name in ("value", "sampling_locations", "attention_weights")
        )
        shapes = [tuple(shape) for shape in want["spatial_shapes"].tolist()]
        got = deform_attn(value, shapes, places, weights)
        np.testing.assert_allclose(got.numpy(), want["output"], atol=1e-6, rtol=0)


def run(net: Psalm, features: ImageFeatures, case: dict[str, np.ndarray], kind: int) -> tuple:
    """Conditions, queries and predictions of a golden case, each stage fed by the one before."""
    embeds = torch.from_numpy(case["llm.inputs_embeds"])
    length = embeds.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    states = net.hidden(embeds, torch.arange(length)[None], allowed)
    marks = next(x for name, x in case.items() if name.startswith("seq.") and name != "seq.seg_query_mask")
    marks = np.cumsum(marks) * marks if kind == 2 else marks  # a region is one position
    pooled = torch.stack([states[0, torch.from_numpy(marks == k + 1)].mean(0) for k in range(marks.max())])
    kinds = torch.tensor([kind])
    conditions = net.conditions(pooled[None], kinds)
    queries = net.seg_query_projector(states[:, torch.from_numpy(case["seq.seg_query_mask"] == 1)])
    keys = net.predictor.keys(features.levels)
    predictions: list[Prediction] = net.predictor(
        queries, keys, features.mask_features, torch.zeros(1, dtype=torch.long)
    )
    return (
        states,
        conditions,
        queries,
        predictions,
        net.predictor.scores(predictions[-1].states, conditions, kinds),
    )


@pytest.mark.parametrize("name", CASES)
def test_prompts(net: Psalm, features: ImageFeatures, golden_psalm_case, name: str) -> None:
    kind, embedding, logits = CASES[name]
    case = golden_psalm_case(name)
    states, conditions, queries, predictions, scores = run(net, features, case, kind)
    close(states, case["llm.last_hidden_state"], "hidden")
    close(conditions, case[f"predictor.in.{embedding}"], "hidden")
    close(queries, case["predictor.in.seg_query"], "hidden")
    for i, prediction in enumerate(predictions[:-1]):
        if f"predictor.aux{i}.pred_masks" in case:
            close(prediction.masks, case[f"predictor.aux{i}.pred_masks"], "masks")
    close(predictions[-1].masks, case["predictor.out.pred_masks"], "masks")
    want = case[f"predictor.out.{logits}"]
    close(scores, want if want.ndim == 3 else want.T[None], "scores")


def test_everything_that_is_read_learns(golden_psalm_checkpoint: Path, golden_psalm_case) -> None:
    """A loss on masks and scores reaches each weight but the dead ones and the other kinds' projectors."""
    config = json.loads((golden_psalm_checkpoint / "config.json").read_text())
    net = Psalm.from_tensors(config, read_tensors(golden_psalm_checkpoint)).requires_grad_(True)
    case = golden_psalm_case("panoptic")
    features = net.encode(torch.from_numpy(case["in.images"]))
    *_, predictions, scores = run(net, features, case, 0)
    (predictions[-1].masks.square().mean() + scores.square().mean()).backward()
    # The image tokens and token table come in with the golden embeddings here.
    apart = (
        "lm_head",
        "query_feat",
        "SEG_",
        "region_projector",
        "REGION",
        "mm_projector",
        "embed_tokens",
        "seg_query",
    )
    idle = {n for n, p in net.named_parameters() if p.grad is None}
    assert {n for n in idle if not any(part in n for part in apart)} == set()
