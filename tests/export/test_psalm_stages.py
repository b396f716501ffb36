"""Every stage of a PSALM bundle against what the original code computed (tests/golden/psalm)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from pixelrt_export.graphs.deform_attn import deform_attn
from pixelrt_export.graphs.deform_decoder import sine_positions
from pixelrt_export.psalm_config import LEVELS

Arrays = dict[str, np.ndarray]
CASES = ("panoptic", "semantic", "referring", "region_box", "video")
# kind, what the language model makes of the conditions, what the predictor makes of the scores
CONDITIONS = {
    "panoptic": (0, "class_name_embedding", "pred_class_name_logits"),
    "semantic": (0, "class_name_embedding", "pred_class_name_logits"),
    "referring": (1, "SEG_embedding", "pred_SEG_logits"),
    "region_box": (2, "region_embedding_list", "pred_region_logits"),
    "video": (2, "region_embedding_list", "pred_region_logits"),
}
# Both sides are fp32 and sum in different orders. The largest values: Swin 4, image tokens 2, pixel decoder 4.4,
# hidden states 5, mask logits 16, scores 18; differences seen are 2.3e-6, 2e-6, 4e-6, 2.2e-6, 2.4e-5 and 1.5e-5, so
# each bound leaves a factor of about four.
TOLERANCE = {"swin": 1e-5, "tokens": 1e-5, "features": 2e-5, "hidden": 1e-5, "masks": 1e-4, "scores": 6e-5}
DTYPES = {"float": np.float32, "float16": np.float16, "int64": np.int64, "bool": np.bool_}


class Graph:
    """A graph on ONNX Runtime; values inside it can be read along with its outputs."""

    def __init__(self, file: Path, inside: Sequence[str] = ()) -> None:
        model = onnx.load(file, load_external_data=False)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
        probe = file.with_name("probe.onnx")  # beside the weights it names
        probe.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(probe), options, providers=["CPUExecutionProvider"]
            )
        finally:
            probe.unlink()
        self.inputs = {i.name: i for i in self.session.get_inputs()}

    def __call__(self, feed: dict[str, Any]) -> Arrays:
        feed = {name: np.asarray(feed[name], DTYPES[i.type[7:-1]]) for name, i in self.inputs.items()}
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, feed), strict=True))


def value(file: Path, node: str) -> str:
    """Output of the node of that name."""
    return next(n.output[0] for n in onnx.load(file, load_external_data=False).graph.node if n.name == node)


def close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(got, want, atol=TOLERANCE[what], rtol=0)


def rows(x: np.ndarray) -> np.ndarray:
    """(1, C, h, w) -> (1, h * w, C)"""
    return x.reshape(1, x.shape[1], -1).transpose(0, 2, 1)


def with_batch(x: np.ndarray) -> np.ndarray:
    return x if x.ndim == 3 else x[None]


@pytest.fixture(scope="module")
def encoder(golden_psalm_bundle: Path) -> Graph:
    return Graph(golden_psalm_bundle / "encoder.fp32.onnx")


@pytest.fixture(scope="module")
def features(encoder: Graph, golden_psalm_case) -> Arrays:
    """Of the one image that all cases share."""
    return encoder({"pixels": golden_psalm_case("panoptic")["in.images"]})


# ---- encoder --------------------------------------------------------------------------------------------


def test_swin_projector_and_pixel_decoder(golden_psalm_bundle: Path, golden_psalm_case) -> None:
    want, file = golden_psalm_case("panoptic"), golden_psalm_bundle / "encoder.fp32.onnx"
    # From stage 1 on, the first norm of a stage is the downsampling's.
    norms = ["LayerNormalization", *["LayerNormalization_2"] * 3]
    stages = [value(file, f"swin/layers.{i}/{norm}") for i, norm in enumerate(norms)]
    memory = value(file, "pixel_decoder/layers.1/LayerNormalization_2")
    got = Graph(file, [*stages, memory])({"pixels": want["in.images"]})
    for i, stage in enumerate(stages):
        close(got[stage], rows(want[f"swin.res{i + 2}"]), "swin")
    close(got["image_tokens"], want["projector.out"], "tokens")
    close(got[memory], want["pixel_decoder.encoder_memory"], "features")
    ends = np.cumsum([16, 64, 256])
    for level, part in enumerate(np.split(got[memory], ends[:-1], axis=1)):
        close(part, rows(want[f"pixel_decoder.multi_scale.{level}"]), "features")
    close(got["mask_features"], want["pixel_decoder.mask_features"], "features")


def test_image_tokens_of_both_pictures(encoder: Graph, golden_psalm_case) -> None:
    want = golden_psalm_case("video")
    close(encoder({"pixels": want["in.vp_images"]})["image_tokens"], want["projector.out"], "tokens")
    close(encoder({"pixels": want["in.images"]})["image_tokens"], want["projector.out_first"], "tokens")


def test_sine_positions_and_centres(golden_psalm_bundle: Path, golden_psalm) -> None:
    with np.load(golden_psalm / "op_msdeform.npz") as want:
        # Angles reach 2 pi: the original's float32 rounds them by up to 5e-7.
        np.testing.assert_allclose(sine_positions(16, 64), rows(want["sine_pe_64_16x16"]), atol=2e-6, rtol=0)
        file = golden_psalm_bundle / "encoder.fp32.onnx"
        centres = value(file, "pixel_decoder/centres/Concat_4")
        got = Graph(file, [centres])({"pixels": np.zeros((1, 3, 128, 128))})[centres]
        points = want["reference_points_4_8_16"]  # (1, N, levels, 2), the same for every level
        np.testing.assert_allclose(got[0, :, 0, 0], points[0, :, :1], atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_deform_attn(golden_psalm, dtype: type) -> None:
    """The operator alone, on maps that are not square, places outside them among the samples.

    fp16 rounds value, weights and result by 2^-11 each; the values reach 1.1.
    """
    with np.load(golden_psalm / "op_msdeform.npz") as want:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        shapes = want["spatial_shapes"].ravel().tolist()
        node = helper.make_node("DeformAttn", ["v", "l", "w"], ["o"], domain="pixelrt", spatial_shapes=shapes)
        inputs = {
            "v": (kind, want["value"]),
            "l": (onnx.TensorProto.FLOAT, want["sampling_locations"]),
            "w": (kind, want["attention_weights"]),
        }
        infos = [helper.make_tensor_value_info(name, t, x.shape) for name, (t, x) in inputs.items()]
        result = helper.make_tensor_value_info("o", kind, want["output"].shape)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pixelrt", 1)]
        model = helper.make_model(
            helper.make_graph([node], "op", infos, [result]),
            opset_imports=opsets,
            functions=[deform_attn(20, LEVELS)],
            ir_version=9,
        )
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feed = {name: x.astype(helper.tensor_dtype_to_np_dtype(t)) for name, (t, x) in inputs.items()}
        got = session.run(None, feed)[0]
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want["output"], atol=1e-6 if dtype == np.float32 else 2e-3, rtol=0)


@pytest.mark.parametrize("batch", [2, 3])
def test_encoder_takes_batches(encoder: Graph, batch: int) -> None:
    pixels = np.random.default_rng(batch).standard_normal((batch, 3, 128, 128), np.float32)
    together = encoder({"pixels": pixels})
    for i in range(batch):
        for name, alone in encoder({"pixels": pixels[i : i + 1]}).items():
            np.testing.assert_allclose(together[name][i], alone[0], atol=5e-5, rtol=0, err_msg=name)


# ---- language -------------------------------------------------------------------------------------------


def chunk(case: Arrays, start: int, end: int, past: Arrays) -> dict[str, Any]:
    """Inputs for tokens start .. end of a case: conditions and mask tokens are asked for where they lie."""
    marks = next(x for name, x in case.items() if name.startswith("seq.") and name != "seq.seg_query_mask")
    ids = (
        np.cumsum(marks) * marks if marks.max() == 1 and case["kind"] == 2 else marks
    )  # a region is one position
    inside = ids[start:end]
    count = int(ids.max()) if inside.any() else 0
    pool = np.array([(inside == k + 1) / (inside == k + 1).sum() for k in range(count)])
    queries = np.flatnonzero(case["seq.seg_query_mask"])
    return {
        "inputs_embeds": case["llm.inputs_embeds"][:, start:end],
        "position_ids": np.arange(start, end)[None],
        "attn_mask": np.tri(end, dtype=bool)[None, None, start:],
        "write_indices": [start],
        "pool": pool.reshape(1, count, end - start),
        "condition_kind": [case["kind"]],
        "query_rows": queries[(queries >= start) & (queries < end)] - start,
        **past,
    }


def empty_cache(graph: Graph, length: int) -> Arrays:
    """length: of the buffer; 0 where past and new are concatenated."""
    names = [name for name in graph.inputs if name.startswith("past.")]
    return {
        name: np.zeros((1, graph.inputs[name].shape[1], length, graph.inputs[name].shape[3]))
        for name in names
    }


@pytest.mark.parametrize("form", ["language", "language_compat"])
@pytest.mark.parametrize("name", CASES)
def test_language(golden_psalm_bundle: Path, golden_psalm_case, form: str, name: str) -> None:
    """In one pass, and in three over one cache: text before the image, image, the rest."""
    kind, embedding, _ = CONDITIONS[name]
    case = golden_psalm_case(name) | {"kind": kind}
    states = "head/LayerNormalization"
    graph = Graph(golden_psalm_bundle / f"{form}.fp32.onnx", [states])
    length = case["llm.inputs_embeds"].shape[1]
    head = int(np.flatnonzero(case["in.input_ids"][0] == -200)[0])
    for ends in ([length], [head, head + 4, length]):
        past = empty_cache(graph, length if form == "language" else 0)
        start = 0
        for end in ends:
            got = graph(chunk(case, start, end, past))
            close(got[states], case["llm.last_hidden_state"][:, start:end], "hidden")
            past = {key: got[key.replace("past", "present")] for key in past}
            if end < length:
                assert got["conditions"].shape == got["queries"].shape == (1, 0, 64)
            start = end
        close(got["conditions"], with_batch(case[f"predictor.in.{embedding}"]), "hidden")
        close(got["queries"], case["predictor.in.seg_query"], "hidden")


def test_what_follows_the_mask_tokens_changes_nothing(golden_psalm_bundle: Path, golden_psalm_case) -> None:
    """The template ends with <seg>: two tokens of the original's are never computed."""
    case = golden_psalm_case("referring") | {"kind": 1}
    graph = Graph(golden_psalm_bundle / "language_compat.fp32.onnx")
    length = int(np.flatnonzero(case["seq.seg_query_mask"])[-1]) + 1
    assert length == case["llm.inputs_embeds"].shape[1] - 2
    got = graph(chunk(case, 0, length, empty_cache(graph, 0)))
    close(got["conditions"], case["predictor.in.SEG_embedding"], "hidden")
    close(got["queries"], case["predictor.in.seg_query"], "hidden")


# ---- pixel decoder --------------------------------------------------------------------------------------


def decoder_feed(case: Arrays, name: str, features: Arrays) -> dict[str, Any]:
    kind, embedding, _ = CONDITIONS[name]
    return {
        "queries": case["predictor.in.seg_query"],
        "conditions": with_batch(case[f"predictor.in.{embedding}"]),
        "condition_kind": [kind],
        **features,
    }


def wanted_scores(case: Arrays, name: str, stage: str = "out") -> np.ndarray:
    """(1, Q, K); the original's region scores are (R, Q)."""
    scores = case[f"predictor.{stage}.{CONDITIONS[name][2]}"]
    return scores if scores.ndim == 3 else scores.T[None]


@pytest.mark.parametrize("name", CASES)
def test_pixel_decoder(golden_psalm_bundle: Path, golden_psalm_case, features: Arrays, name: str) -> None:
    """Masks and scores, and the masks that each layer looks through, at full resolution."""
    case, file = golden_psalm_case(name), golden_psalm_bundle / "pixel_decoder.fp32.onnx"
    vectors = [value(file, f"predictor/layers.{i}/mask_embed/2/Add") for i in range(4)]
    got = Graph(file, vectors)(decoder_feed(case, name, features))
    assert got["mask_logits"].shape == (1, 20, 32, 32)
    close(got["mask_logits"], case["predictor.out.pred_masks"], "masks")
    close(got["scores"], wanted_scores(case, name), "scores")
    if "predictor.aux0.pred_masks" in case:
        flat = features["mask_features"].reshape(1, 64, -1)
        for i, vector in enumerate(vectors):
            masks = (got[vector] @ flat).reshape(1, 20, 32, 32)
            close(masks, case[f"predictor.aux{i}.pred_masks"], "masks")


def test_prompts_of_one_batch_do_not_touch_each_other(
    golden_psalm_bundle: Path, golden_psalm_case, features
) -> None:
    """A sentence and three regions about one image, in one run, each with its own projector."""
    graph = Graph(golden_psalm_bundle / "pixel_decoder.fp32.onnx")
    names = ("referring", "region_box")
    feeds = [decoder_feed(golden_psalm_case(name), name, features) for name in names]
    conditions = [np.repeat(feeds[0]["conditions"], 3, axis=1), feeds[1]["conditions"]]
    both = {
        "queries": np.concatenate([feed["queries"] for feed in feeds]),
        "conditions": np.concatenate(conditions),
        "condition_kind": [1, 2],
        **features,
    }
    got = graph(both)
    for i, name in enumerate(names):
        case = golden_psalm_case(name)
        close(got["mask_logits"][i : i + 1], case["predictor.out.pred_masks"], "masks")
        want = wanted_scores(case, name)
        close(got["scores"][i : i + 1], np.broadcast_to(want, (1, 20, 3)), "scores")


def test_a_mask_that_is_empty_shuts_nothing(golden_psalm_bundle: Path, features: Arrays) -> None:
    """All logits of a row below zero: the row of the attention bias is open."""
    file = golden_psalm_bundle / "pixel_decoder.fp32.onnx"
    logits, bias = (
        value(file, f"predictor/layers.0/attention_mask/{node}") for node in ("MatMul", "Unsqueeze")
    )
    rng = np.random.default_rng(5)
    queries = 3 * rng.standard_normal((4, 20, 64))
    prompt = {"queries": queries, "conditions": np.zeros((4, 1, 64)), "condition_kind": [0] * 4}
    got = Graph(file, [logits, bias])({**prompt, **features})
    below = got[logits] < 0
    empty = below.all(-1)
    assert 0 < empty.sum() < empty.size
    np.testing.assert_array_equal(got[bias][:, 0] < 0, below & ~empty[..., None])


# ---- half precision ---------------------------------------------------------------------------------------


def answer(bundle: Path, activations: str, case: Arrays, name: str) -> Arrays:
    """All three graphs, each fed by the one before."""
    kind = CONDITIONS[name][0]
    encoder, language, decoder = (
        Graph(bundle / f"{graph}.{activations}.onnx") for graph in ("encoder", "language", "pixel_decoder")
    )
    features = encoder({"pixels": case["in.images"]})
    length = case["llm.inputs_embeds"].shape[1]
    states = language(chunk(case | {"kind": kind}, 0, length, empty_cache(language, length)))
    return states | decoder({**features, **states, "condition_kind": [kind]})


@pytest.mark.parametrize("name", ["panoptic", "referring"])
@pytest.mark.parametrize(("stored", "activations"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "fp16")])
def test_half_precision(
    golden_psalm_bundle: Path,
    golden_psalm_fp16_bundle: Path,
    golden_psalm_case,
    stored: str,
    activations: str,
    name: str,
) -> None:
    """Weights or activations of fp16, through all three graphs.

    Conditions and queries keep fp16's three digits. Masks are compared by their overlap: a query looks where its
    last mask was positive, so one logit near zero that changes its sign moves that query's later masks; random
    weights have many such logits. Seen: IoU 0.990 and above over all queries, scores
    (up to 10) 0.037 apart in the mean.
    """
    case = golden_psalm_case(name)
    got = answer(
        golden_psalm_fp16_bundle if stored == "fp16" else golden_psalm_bundle, activations, case, name
    )
    want = case["predictor.out.pred_masks"] > 0
    np.testing.assert_allclose(got["queries"], case["predictor.in.seg_query"], atol=1e-2, rtol=0)
    masks = got["mask_logits"] > 0
    assert (masks & want).sum() / (masks | want).sum() > 0.98
    assert np.abs(got["scores"] - wanted_scores(case, name)).mean() < 0.05
