"""PSALM's checkpoint: every tensor accounted for, sizes from shapes, what the manifest says of prompts and tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.export import export_bundle
from pixelrt_export.families.psalm import CONDITIONS, MARKERS, TEMPLATES
from pixelrt_export.graphs.swin import relative_index
from pixelrt_export.psalm_config import PsalmConfig
from pixelrt_export.psalm_tensors import DEAD_TENSORS, PROJECTORS, STALE, dead_tensors, psalm_tensors
from safetensors.numpy import save_file
from tokenizers import Tokenizer

RELEASE = {
    "model_type": "llava_phi",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "vocab_size": 50297,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "qk_layernorm": False,
    "mm_projector_type": "swin_conv",
    "mask_decode_train": True,
    "with_norm": True,
    "with_layernorm": False,
}


@pytest.fixture(scope="module")
def released(golden_psalm: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original code's own tensors at the released size."""
    return {
        key: tuple(shape) for key, shape in json.loads((golden_psalm / "real_keys.json").read_text()).items()
    }


# ---- tensors --------------------------------------------------------------------------------------------


def test_released_size(released) -> None:
    """Every name is expected or dead by name, and sizes that no config.json says come out right."""
    config = PsalmConfig.read(RELEASE, released)
    assert (config.image_size, config.image_tokens, config.mask_grid, config.levels) == (
        1024,
        256,
        256,
        (32, 64, 128),
    )
    assert [(s.width, s.heads, s.depth, s.window) for s in config.swin] == [
        (128, 4, 2, 12),
        (256, 8, 2, 12),
        (512, 16, 18, 12),
        (1024, 32, 2, 12),
    ]
    assert (config.width, config.heads, config.queries) == (256, 8, 100)
    assert (config.encoder_layers, config.decoder_layers) == (6, 9)
    assert (config.language.rotary_dims, config.language.head_dim) == (32, 64)
    expected = psalm_tensors(config, released)
    assert {key: released.get(key) for key in expected} == expected
    rest = released.keys() - expected.keys()
    assert all(any(kind.matches(key, released[key]) for kind in DEAD_TENSORS) for key in rest)
    assert {key for key in rest if not key.endswith(("position_index", "batches_tracked"))} == {
        "lm_head.weight",
        "predictor.query_feat.weight",
        "predictor.SEG_query_embed.weight",
    }


def test_stale_tensors_are_tolerated_and_reported(
    golden_psalm_checkpoint: Path, golden_psalm_bundle: Path
) -> None:
    left_out = Bundle.read(golden_psalm_bundle).manifest["provenance"]["left_out"]
    stale = {key for key, reason in left_out.items() if reason == STALE}
    found = Checkpoint.open(golden_psalm_checkpoint).shapes()
    assert stale == {key for key in found if key.startswith("region_sampler.")}
    assert len(stale) == 8


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        ("fourth.weight", (64, 64)),
        ("fourth.bias", (64,)),
        ("third_scalar", ()),
        ("other.weight", (64, 32)),
        ("model.layers.2.mlp.fc1.weight", (256, 64)),
    ],
)
def test_nothing_else_is_tolerated(golden_psalm_checkpoint: Path, extra: str, shape: tuple[int, ...]) -> None:
    """The eight are in this file already: a ninth of any shape is an error that names it."""
    checkpoint = Checkpoint.open(golden_psalm_checkpoint)
    found = checkpoint.shapes()
    one = next(iter(checkpoint._entries.values()))
    entries = {**checkpoint._entries, extra: replace(one, shape=shape)}
    if extra == "fourth.weight":  # a whole Linear
        entries["fourth.bias"] = replace(one, shape=(64,))
    changed = replace(checkpoint, _entries=entries)
    config = PsalmConfig.read(checkpoint.config, found)
    with pytest.raises(InputError, match="unexpected") as error:
        changed.account(psalm_tensors(config, changed.shapes()), dead_tensors(config, changed.shapes()))
    # Which Linear of four is one too many cannot be known; the list says one of them.
    assert extra in str(error.value) or "region_sampler" in str(error.value)


def test_a_weight_without_its_bias_is_no_stale_linear(golden_psalm_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(golden_psalm_checkpoint)
    entries = {key: entry for key, entry in checkpoint._entries.items() if key != "region_sampler.key.bias"}
    changed = replace(checkpoint, _entries=entries)
    config = PsalmConfig.read(checkpoint.config, changed.shapes())
    with pytest.raises(InputError, match=r"unexpected:\n    region_sampler\.key\.weight"):
        changed.account(psalm_tensors(config, changed.shapes()), dead_tensors(config, changed.shapes()))


def test_missing_and_misshapen_tensors_are_listed(golden_psalm_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(golden_psalm_checkpoint)
    config = PsalmConfig.read(checkpoint.config, checkpoint.shapes())
    entries = dict(checkpoint._entries)
    del entries["model.layers.1.mlp.fc2.bias"]
    entries["seg_query_projector.bias"] = replace(entries["seg_query_projector.bias"], shape=(65,))
    changed = replace(checkpoint, _entries=entries)
    with pytest.raises(InputError) as error:
        changed.account(psalm_tensors(config, changed.shapes()), dead_tensors(config, changed.shapes()))
    assert "model.layers.1.mlp.fc2.bias [64]" in str(error.value)
    assert "seg_query_projector.bias is [65], wanted [64]" in str(error.value)


def test_relative_index_is_the_checkpoints_own(golden_psalm_checkpoint: Path) -> None:
    """The buffer that is left out says what `relative_index` computes."""
    checkpoint = Checkpoint.open(golden_psalm_checkpoint)
    index = checkpoint.tensor("model.vision_tower.layers.0.blocks.0.attn.relative_position_index")
    np.testing.assert_array_equal(relative_index(6), index)


# ---- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "llava"}, "model_type 'llava'"),
        ({"mm_projector_type": "linear"}, "implements 'swin_conv' only"),
        ({"qk_layernorm": True}, "implements False only"),
        ({"with_layernorm": True}, "implements False only"),
        ({"image_size": 1000}, "wanted a multiple of 32"),
        ({"hidden_act": "relu"}, "implements 'gelu_new' only"),
    ],
)
def test_settings_that_the_graphs_do_not_express(released, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PsalmConfig.read(RELEASE | change, released)


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("seg_query", None, "no tensor seg_query"),
        ("model.vision_tower.layers.1.blocks.0.attn.relative_position_bias_table", (530, 8), "530 offsets"),
        (
            "pixel_decoder.transformer.encoder.layers.0.self_attn.attention_weights.bias",
            (95,),
            "3 levels x 4 points",
        ),
        ("pixel_decoder.mask_features.weight", (100, 256, 1, 1), "cannot be cut into 8 heads"),
    ],
)
def test_shapes_that_make_no_model(released, key: str, shape: tuple[int, ...] | None, sentence: str) -> None:
    found = {name: s for name, s in released.items() if name != key} | ({key: shape} if shape else {})
    with pytest.raises(InputError, match=sentence):
        PsalmConfig.read(RELEASE, found)


def test_a_vision_tower_of_its_own_is_refused(golden_psalm_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --vision-tower"):
        export_bundle(golden_psalm_checkpoint, tmp_path / "bundle", vision_tower=tmp_path)


# ---- manifest -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encode(golden_psalm_bundle: Path) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(golden_psalm_bundle / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def pieces(prompt: dict[str, Any], kind: str, count: int, encode: Callable[[str], list[int]]) -> list[int]:
    """Ids of a template with its markers as the original's negative numbers."""
    marker = prompt["condition"][kind]
    text = prompt["templates"][kind].replace("{conditions}", prompt["separator"].join([marker] * count))
    numbers = {"<image>": -200, "<seg>": -201, "<cls>": -202, "<region>": -203, "<refer>": -204}
    ids: list[int] = []
    while text:
        at, first = min((text.find(name), name) for name in numbers if name in text)
        ids += [*encode(text[:at]), numbers[first]]
        text = text[at + len(first) :]
    return ids


@pytest.mark.parametrize(
    ("case", "kind", "count"),
    [("panoptic", "class", 7), ("referring", "sentence", 1), ("region_box", "region", 3)],
)
def test_templates_give_the_prompts_of_the_original(
    golden_psalm_bundle: Path, golden_psalm_case, encode, case: str, kind: str, count: int
) -> None:
    manifest = Bundle.read(golden_psalm_bundle).manifest
    got = pieces(manifest["prompt"], kind, count, encode)
    want = golden_psalm_case(case)["in.input_ids"][0].tolist()
    assert (
        got == want[:-2]
    )  # nothing that is read can look at what follows the mask tokens: " " and the end of text
    assert want[-2:] == [ord(" "), manifest["tokens"]["eos"]]
    assert want.index(-200) == manifest["tokens"]["head"]


def test_class_names_and_sentences(
    golden_psalm_bundle: Path, golden_psalm, golden_psalm_case, encode
) -> None:
    prompt = Bundle.read(golden_psalm_bundle).manifest["prompt"]
    golden = json.loads((golden_psalm / "golden.json").read_text())
    case = golden_psalm_case("panoptic")
    names = [[*encode(name + prompt["class_suffix"])] for name in golden["class_names"]]
    assert [i for ids in names for i in ids] == case["in.class_name_ids"][0].tolist()
    assert [i for i, ids in enumerate(names) for _ in ids] == case["in.cls_indices"][0].tolist()
    assert golden["class_names"][-1] == prompt["background"]
    sentences = ("the blue disc on the right", "round thing")
    text = "".join(prompt["sentence_item"].replace("{sentence}", s) for s in sentences)
    assert text == golden["refer_instruction"]
    assert (
        encode(text + prompt["sentence_suffix"])
        == golden_psalm_case("referring")["in.token_refer_id"].tolist()
    )


def test_templates_are_the_originals_text(golden_psalm_bundle: Path, golden_psalm) -> None:
    prompt = Bundle.read(golden_psalm_bundle).manifest["prompt"]
    golden = json.loads((golden_psalm / "golden.json").read_text())
    for kind, count, key in (("class", 7, "category"), ("sentence", 1, "referring"), ("region", 3, "region")):
        conditions = prompt["separator"].join([prompt["condition"][kind]] * count)
        text = prompt["templates"][kind].replace("{conditions}", conditions)
        assert text + " <|endoftext|>" == golden[f"prompt_{key}"]


def test_padding_and_tokens(
    golden_psalm_bundle: Path, golden_psalm_checkpoint: Path, golden_psalm_case
) -> None:
    manifest = Bundle.read(golden_psalm_bundle).manifest
    case, tokens = golden_psalm_case("panoptic"), manifest["tokens"]
    padding = case["in.images"][0, :, -1, -1]
    np.testing.assert_array_equal(np.float32(manifest["image"]["fill"]), padding)
    assert tokens["image_tokens"] == case["projector.out"].shape[1]
    table = manifest["embeddings"]
    rows = np.fromfile(golden_psalm_bundle / table["file"], table["dtype"]).reshape(table["shape"])
    first, count = tokens["mask_tokens"]["first"], tokens["mask_tokens"]["count"]
    seg_query = Checkpoint.open(golden_psalm_checkpoint).tensor("seg_query")
    np.testing.assert_array_equal(rows[first : first + count], seg_query)
    assert len(rows) == first + count
    assert manifest["decoder"] == {"width": 64, "queries": 20, "mask_size": [32, 32]}


def test_kinds_are_named_alike_everywhere(golden_psalm_bundle: Path) -> None:
    assert list(CONDITIONS) == list(TEMPLATES) == list(MARKERS)
    assert list(CONDITIONS.values()) == list(range(len(PROJECTORS)))
    assert Bundle.read(golden_psalm_bundle).manifest["conditions"] == CONDITIONS


# ---- tokenizer files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("added_tokens.json", {"[PAD]": 256, "[SEG]": 258}, "holds <|endoftext|>"),
        ("added_tokens.json", {"[PAD]": 256, "<|endoftext|>": 257}, r"holds \[SEG\]"),
        ("added_tokens.json", {"[PAD]": 256, "[SEG]": 258, "<|endoftext|>": 259}, "wanted 257"),
        (
            "added_tokens.json",
            {"a b c": 260, "[PAD]": 256, "[SEG]": 257, "<|endoftext|>": 258, "d e": 259},
            "261 ids",
        ),
        ("added_tokens.json", {"[SEG]": "257"}, "must map texts to whole numbers"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "trained without"),
        ("vocab.json", {"a": 0}, "lacks 255 of the 256 bytes"),
        ("merges.txt", "#version: 0.2\na bc\n", "line 2: 'a bc' does not join"),
    ],
)
def test_tokenizer_files_that_do_not_fit(
    golden_psalm_checkpoint: Path, tmp_path: Path, name: str, content: Any, sentence: str
) -> None:
    folder = tmp_path / "psalm"
    shutil.copytree(golden_psalm_checkpoint, folder)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        export_bundle(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_one_file_instead_of_shards(
    golden_psalm_checkpoint: Path, golden_psalm_bundle: Path, tmp_path: Path
) -> None:
    """The layout of the files changes nothing of what is exported."""
    checkpoint = Checkpoint.open(golden_psalm_checkpoint)
    folder = tmp_path / "psalm"
    folder.mkdir()
    for file in golden_psalm_checkpoint.iterdir():
        if not file.name.startswith("model"):
            shutil.copyfile(file, folder / file.name)
    save_file({key: checkpoint.tensor(key) for key in checkpoint.shapes()}, folder / "model.safetensors")
    bundle = export_bundle(folder, tmp_path / "bundle")
    for file in golden_psalm_bundle.iterdir():
        if file.suffix in (".onnx", ".data", ".bin"):
            assert (bundle / file.name).read_bytes() == file.read_bytes(), file.name
