"""PSALM's graph files, sizes other than the golden run's, and window attention against the slow truth."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt_export.export import export_bundle
from pixelrt_export.graph import Graph
from pixelrt_export.graphs.swin import _Block
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.psalm_config import PsalmConfig, SwinStage
from pixelrt_export.psalm_tensors import psalm_tensors
from pixelrt_export.weight_file import WeightFile
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]


OPSETS = {"encoder": 20, "language": 24, "language_compat": 21, "pixel_decoder": 20}


def graph_files(*bundles: Path) -> list[Path]:
    return [file for bundle in bundles for file in sorted(bundle.glob("*.onnx"))]


def test_graphs_pass_the_checker_at_their_opset(
    golden_psalm_bundle: Path, golden_psalm_fp16_bundle: Path
) -> None:
    for file in graph_files(golden_psalm_bundle, golden_psalm_fp16_bundle):
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(file, load_external_data=False)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        stage = file.name.split(".")[0]
        own = {"pixelrt": 1} if stage == "encoder" else {}
        own |= {"com.microsoft": 1} if file.name == "language.fp32.onnx" else {}  # ONNX Runtime's attention
        assert opsets == {"": OPSETS[stage]} | own
        assert [f.name for f in model.functions] == (["DeformAttn"] if stage == "encoder" else [])


def test_nothing_dead(golden_psalm_bundle: Path) -> None:
    """Every initializer, node and input leads to an output."""
    for file in graph_files(golden_psalm_bundle):
        graph = onnx.load(file, load_external_data=False).graph
        wanted = {output.name for output in graph.output}
        for node in reversed(graph.node):
            assert wanted & set(node.output), f"{file.name}: {node.name} is never read"
            wanted |= set(node.input)
        assert {t.name for t in graph.initializer} <= wanted, file.name
        assert {i.name for i in graph.input} <= wanted, file.name


def test_no_weight_is_stored_twice(golden_psalm_bundle: Path) -> None:
    data = np.memmap(golden_psalm_bundle / "weights.data", np.uint8, "r")
    seen: dict[bytes, str] = {}
    for file in graph_files(golden_psalm_bundle):
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {pair.key: pair.value for pair in tensor.external_data}
                content = data[int(entry["offset"]) :][: int(entry["length"])].tobytes()
                if len(content) > 4096:
                    assert seen.setdefault(content, tensor.name) == tensor.name


def test_image_alone_is_computed_in_the_encoder(golden_psalm_bundle: Path) -> None:
    """No node of the pixel decoder depends on image inputs and weights only (views apart)."""
    graph = onnx.load(golden_psalm_bundle / "pixel_decoder.fp32.onnx", load_external_data=False).graph
    of_prompt = {"queries", "conditions", "condition_kind"}
    image = {i.name for i in graph.input} - of_prompt
    for node in graph.node:
        if set(node.input) & of_prompt:
            of_prompt |= set(node.output)
        elif set(node.input) & image:
            image |= set(node.output)
            assert node.op_type == "Reshape", f"{node.name} is recomputed for every prompt"


def test_features_go_by_name(golden_psalm_bundle: Path) -> None:
    """All the encoder says beside the image tokens is an input of the pixel decoder, of the same type and shape."""
    bundle = Bundle.read(golden_psalm_bundle)
    encoder, decoder = (bundle.graph(name, activations="float32") for name in ("encoder", "pixel_decoder"))
    given = {t.name: (t.dtype, t.shape[1:]) for t in encoder.outputs}
    taken = {t.name: (t.dtype, t.shape[1:]) for t in decoder.inputs}
    assert given.keys() - taken.keys() == {"image_tokens"}
    assert taken.keys() - given.keys() == {"queries", "conditions", "condition_kind"}
    assert all(taken[name] == given[name] for name in taken.keys() & given.keys())


# ---- other sizes ------------------------------------------------------------------------------------------


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Each from its name; norms near 1, variances above 0, outputs of every layer of size 1."""
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            x = np.abs(x) + 0.5
        elif len(shape) == 1:
            x = 0.1 * x + name.endswith("weight")
        elif not name.endswith(
            ("level_embed", "level_embed.weight", "query_embed.weight", "embed_tokens.weight")
        ):
            x /= np.sqrt(np.prod(shape[1:]))
        tensors[name] = x.astype(np.float32)
    return tensors


def config_of(image: int, window: int, width: int, queries: int, layers: int) -> PsalmConfig:
    language = LanguageConfig("phi", 48, 96, 1, 3, 3, 16, 259, 16384, 1e-5, 10000.0, 8, "gelu_new")
    stages = tuple(SwinStage(width << i, 1 << i, 1 + i % 2, window, image // 4 >> i) for i in range(4))
    return PsalmConfig(language, image, 4, stages, 32, 2, 1, layers, queries)


def write_checkpoint(folder: Path, tokenizer: Path, config: PsalmConfig) -> Path:
    folder.mkdir()
    save_file(random_tensors(psalm_tensors(config, {})), folder / "model.safetensors")
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    language = config.language
    settings = {
        "model_type": "llava_phi",
        "hidden_size": language.hidden,
        "intermediate_size": language.intermediate,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "vocab_size": language.vocab,
        "image_size": config.image_size,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("image", "window", "width", "queries", "layers"),
    [(160, 5, 16, 7, 3), (160, 7, 16, 12, 4), (64, 4, 8, 1, 1), (96, 12, 8, 33, 2)],
    ids=["no window is padded", "odd window", "one query, one layer", "window larger than maps"],
)
def test_other_sizes(
    golden_psalm_checkpoint: Path,
    tmp_path: Path,
    image: int,
    window: int,
    width: int,
    queries: int,
    layers: int,
) -> None:
    """Sizes are read back from shapes, and all three graphs run one after another in both cache forms."""
    config = config_of(image, window, width, queries, layers)
    folder = write_checkpoint(tmp_path / "psalm", golden_psalm_checkpoint, config)
    bundle = Bundle.read(export_bundle(folder, tmp_path / "bundle"))
    assert bundle.manifest["image"]["size"] == image
    side = image // 4
    rng = np.random.default_rng(image + window)
    features = OrtBackend(bundle).open("encoder")({"pixels": rng.standard_normal((1, 3, image, image))})
    tokens = features["image_tokens"]
    assert tokens.shape == (1, bundle.manifest["tokens"]["image_tokens"], 48)
    length = 5 + tokens.shape[1] + queries
    table = rng.standard_normal((1, length, 48)).astype(np.float32)
    table[:, 5 : 5 + tokens.shape[1]] = tokens
    answers = []
    for compatible in (False, True):
        backend = OrtBackend(bundle, compatible=compatible)
        language = backend.open("language")
        cache = np.zeros((1, 3, 0 if compatible else length, 16))
        past = {t.name: cache for t in language.file.inputs if t.name.startswith("past.")}
        states = language(
            {
                "inputs_embeds": table,
                "position_ids": np.arange(length)[None],
                "attn_mask": np.tri(length, dtype=bool)[None, None],
                "write_indices": np.zeros(1),
                "pool": np.full((1, 2, length), 1 / length),
                "condition_kind": np.ones(1),
                "query_rows": np.arange(length - queries, length),
                **past,
            }
        )
        answers.append(backend.open("pixel_decoder")({**features, **states, "condition_kind": np.ones(1)}))
    assert answers[0]["mask_logits"].shape == (1, queries, side, side)
    assert answers[0]["scores"].shape == (1, queries, 2)
    for name in ("mask_logits", "scores"):
        assert np.isfinite(answers[0][name]).all()
        np.testing.assert_allclose(answers[0][name], answers[1][name], atol=2e-4, rtol=0)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("grid", "window"), [(10, 5), (10, 7), (8, 6), (3, 7), (7, 7), (4, 1)])
def test_window_attention(tmp_path: Path, grid: int, window: int, shifted: bool) -> None:
    """The graph of one block and, position by position, what it means."""
    stage = SwinStage(width=8, heads=2, depth=2, window=window, grid=grid)
    prefix = "model.vision_tower.block"
    shapes = {f"{prefix}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, 2)}
    for name, inputs, outputs in (
        ("attn.qkv", 8, 24),
        ("attn.proj", 8, 8),
        ("mlp.fc1", 8, 32),
        ("mlp.fc2", 32, 8),
    ):
        shapes |= {f"{prefix}.{name}.weight": (outputs, inputs), f"{prefix}.{name}.bias": (outputs,)}
    for name in ("norm1", "norm2"):
        shapes |= {f"{prefix}.{name}.weight": (8,), f"{prefix}.{name}.bias": (8,)}
    tensors = random_tensors(shapes)
    with WeightFile(tmp_path / "weights.data") as weights:
        g = Graph("block", weights, activations="float32", storage="float32", opset=20)
        x = g.input("x", "activations", ["B", grid * grid, 8])
        mixed = _Block(g, lambda name: tensors[name], stage, "block", shifted)
        g.output(
            mixed._from_windows(mixed._attention(mixed._to_windows(x))),
            "y",
            "activations",
            ["B", grid * grid, 8],
        )
        g.save(tmp_path / "block.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "block.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(grid).standard_normal((2, grid * grid, 8)).astype(np.float32)
    got = session.run(None, {"x": x})[0]
    for i in range(2):
        want = slow_window_attention(x[i], tensors, prefix, grid, window, window // 2 if shifted else 0)
        np.testing.assert_allclose(got[i], want, atol=2e-6, rtol=0)


def slow_window_attention(
    x: np.ndarray, tensors: Tensors, prefix: str, grid: int, window: int, shift: int
) -> np.ndarray:
    """Before the output projection: (G * G, 8) -> the same.

    The map is padded to whole windows; padding is zero before the projections and is looked at like the rest. Two
    positions meet if they share a window after everything moved up and left by `shift`, around the edge. Those that
    went around the edge and those that did not get -100.
    """
    side = -(-grid // window) * window
    padded = np.zeros((side, side, 8))
    padded[:grid, :grid] = x.reshape(grid, grid, 8)
    qkv = padded.reshape(-1, 8) @ tensors[f"{prefix}.attn.qkv.weight"].T + tensors[f"{prefix}.attn.qkv.bias"]
    q, k, v = qkv.reshape(-1, 3, 2, 4).transpose(1, 0, 2, 3)
    y, x = np.divmod(np.arange(side * side), side)
    place = np.stack([(y - shift) % side, (x - shift) % side])
    around = np.stack([y < shift, x < shift])
    table = tensors[f"{prefix}.attn.relative_position_bias_table"].reshape(2 * window - 1, 2 * window - 1, 2)
    out = np.zeros((side * side, 2, 4))
    for i in range(side * side):
        others = np.flatnonzero((place[:, :] // window == place[:, i : i + 1] // window).all(0))
        dy, dx = place[:, i : i + 1] - place[:, others] + window - 1
        apart = (around[:, others] != around[:, i : i + 1]).any(0)
        scores = np.einsum("hd,nhd->nh", q[i], k[others]) / 2 + table[dy, dx] - 100.0 * apart[:, None]
        weights = np.exp(scores - scores.max(0))
        out[i] = np.einsum("nh,nhd->hd", weights / weights.sum(0), v[others])
    return out.reshape(side, side, 8)[:grid, :grid].reshape(-1, 8)
