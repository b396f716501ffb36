"""The graph files of a bundle: valid, minimal, shared weights, both activation types, any number of targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.segmenter import open_bundle
from pixelrt_export.export import export_bundle
from pixelrt_export.graphs.fuse_scales import fuse_scales
from pixelrt_kernels.fuse_scales.reference import fuse_scales as specification

OPSETS = {"encoder": 20, "language": 24, "language_compat": 21, "pixel_decoder": 20}
QUESTION = "Can you segment the dog in this image?"


def graph_files(bundle: Path) -> list[Path]:
    return sorted(bundle.glob("*.onnx"))


@pytest.fixture(scope="module")
def fp16_bundle(golden_checkpoint_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(golden_checkpoint_a, tmp_path_factory.mktemp("fp16") / "golden", precision="fp16")


def test_graphs_pass_the_checker_at_their_opset(golden_bundle_a: Path, fp16_bundle: Path) -> None:
    for file in [*graph_files(golden_bundle_a), *graph_files(fp16_bundle)]:
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(file, load_external_data=False)
        assert model.opset_import[0].version == OPSETS[file.name.split(".")[0]]
        drawn = file.name.startswith("pixel_decoder")
        # With fp32 activations the language model is ONNX Runtime's alone, and takes its attention.
        more = {"pixelrt"} if drawn else {"com.microsoft"} if file.name == "language.fp32.onnx" else set()
        assert {entry.domain for entry in model.opset_import} == {"", *more}
        assert [f.name for f in model.functions] == (["FuseScales"] if drawn else [])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_body_of_fuse_scales_is_its_specification(dtype: type) -> None:
    """Logits far out among them. Both compute in fp32 and round once; sigmoid and fused multiply-add may differ."""
    rng, kind = np.random.default_rng(0), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    previous = rng.normal(0, 30, (3, 35, 1)).astype(np.float32)
    features, dense = (rng.normal(size=shape).astype(dtype) for shape in ((1, 35, 6), (1, 1, 6)))
    feed = {"p": previous, "f": features, "d": dense}
    infos = [
        onnx.helper.make_tensor_value_info(name, kind if name != "p" else onnx.TensorProto.FLOAT, x.shape)
        for name, x in feed.items()
    ]
    node = onnx.helper.make_node("FuseScales", list(feed), ["o"], domain="pixelrt")
    result = onnx.helper.make_tensor_value_info("o", kind, (3, 35, 6))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "op", infos, [result]),
        opset_imports=[onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("pixelrt", 1)],
        functions=[fuse_scales(20)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    got = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    wanted = specification(previous[..., 0], features[0], dense[0, 0])
    assert got.dtype == wanted.dtype == dtype
    ulp = 2.0**-10 if dtype == np.float16 else 2.0**-22  # two units in the last place at most
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), atol=ulp, rtol=ulp)


def test_nothing_dead(golden_bundle_a: Path) -> None:
    """Every initializer and every node leads to an output."""
    for file in graph_files(golden_bundle_a):
        graph = onnx.load(file, load_external_data=False).graph
        wanted = {output.name for output in graph.output}
        for node in reversed(graph.node):
            assert wanted & set(node.output), f"{file.name}: {node.name} is never read"
            wanted |= set(node.input)
        assert {t.name for t in graph.initializer} <= wanted, file.name
        assert {i.name for i in graph.input} <= wanted, file.name


def test_one_weight_file_shared_by_all(golden_bundle_a: Path) -> None:
    """One tensor, one place: no bytes of weights.data are stored twice, and all are named by some graph."""
    places: dict[str, tuple[int, int]] = {}
    for file in graph_files(golden_bundle_a):
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {pair.key: pair.value for pair in tensor.external_data}
                assert entry["location"] == "weights.data"
                place = int(entry["offset"]), int(entry["length"])
                assert places.setdefault(tensor.name, place) == place
    data = np.memmap(golden_bundle_a / "weights.data", np.uint8, "r")
    seen: dict[bytes, str] = {}
    for name, (offset, length) in places.items():
        content = data[offset : offset + length].tobytes()
        if length > 4096:
            assert content not in seen, f"{name} is stored again as {seen.get(content)}"
            seen[content] = name
    assert len(data) == max(offset + length for offset, length in places.values())


def test_image_alone_is_computed_in_the_encoder(golden_bundle_a: Path) -> None:
    """No node of the pixel decoder depends on image inputs and weights only (views apart)."""
    graph = onnx.load(golden_bundle_a / "pixel_decoder.fp32.onnx", load_external_data=False).graph
    per_question = {"seg_hidden"}
    image = {i.name for i in graph.input} - per_question
    views = {"Reshape", "Transpose"}
    for node in graph.node:
        inputs = set(node.input)
        if inputs & per_question:
            per_question |= set(node.output)
        elif inputs & image:
            image |= set(node.output)
            assert node.op_type in views, f"{node.name} is recomputed for every question"


@pytest.mark.parametrize("targets", [1, 3, 7])
def test_pixel_decoder_takes_any_number_of_targets(golden_bundle_a: Path, targets: int) -> None:
    """Targets do not influence one another."""
    bundle = Bundle.read(golden_bundle_a)
    seg = open_bundle(bundle)
    rng = np.random.default_rng(targets)
    frame = seg.encode(rng.integers(0, 256, (90, 61, 3), np.uint8))
    hidden = rng.standard_normal((targets, 2, 3, 128), np.float32)
    decode = OrtBackend(bundle).open("pixel_decoder")
    together = decode({"seg_hidden": hidden, **frame.features})["low_res_masks"]
    alone = [
        decode({"seg_hidden": hidden[i : i + 1], **frame.features})["low_res_masks"][0]
        for i in range(targets)
    ]
    # Other GEMM shapes round differently; logits here reach 20.
    np.testing.assert_allclose(together, np.stack(alone), atol=3e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_encoder_takes_batches(golden_bundle_a: Path, batch: int) -> None:
    encode = OrtBackend(Bundle.read(golden_bundle_a)).open("encoder")
    rng = np.random.default_rng(batch)
    pixels = rng.standard_normal((batch, 3, 448, 448), np.float32)
    valid = rng.random((batch, 1025)) < 0.8
    valid[:, 0] = True
    together = encode({"pixels": pixels, "patch_valid": valid})
    for i in range(batch):
        alone = encode({"pixels": pixels[i : i + 1], "patch_valid": valid[i : i + 1]})
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value[0], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("compatible", [False, True], ids=["in_place", "compat"])
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("activations", ["float32", "float16"])
def test_all_spellings_agree(
    golden_bundle_a: Path, fp16_bundle: Path, stored: str, activations: str, compatible: bool
) -> None:
    """The same answer from both weight types, both activation types and both cache forms.

    Bounds: golden weights are fp16 numbers, so stored fp16 changes only what export folds; fp16 activations keep
    three digits. The original's own bf16 run differs by 0.32 in the logits and reaches IoU 0.970.
    """
    reference = open_bundle(Bundle.read(golden_bundle_a))
    bundle = Bundle.read(golden_bundle_a if stored == "fp32" else fp16_bundle)
    seg = open_bundle(bundle, OrtBackend(bundle, activations=activations, compatible=compatible))
    rgb = np.random.default_rng(3).integers(0, 256, (48, 70, 3), np.uint8)
    want = reference.segment(reference.encode(rgb), QUESTION, max_new_tokens=16)
    got = seg.segment(seg.encode(rgb), QUESTION, max_new_tokens=16)
    assert got.token_ids == want.token_ids
    assert len(got.masks) == len(want.masks) == 2
    bound = 0.1 if activations == "float16" else 0.03 if stored == "fp16" else 3e-4
    for g, w in zip(got.masks, want.masks, strict=True):
        assert np.abs(g.low_res_logits - w.low_res_logits).max() < bound
        assert (g.mask & w.mask).sum() / max(1, (g.mask | w.mask).sum()) > 0.99


def test_fp16_halves_the_weights(golden_bundle_a: Path, fp16_bundle: Path) -> None:
    sizes = [(b / "weights.data").stat().st_size for b in (golden_bundle_a, fp16_bundle)]
    assert sizes[1] < 0.55 * sizes[0]
