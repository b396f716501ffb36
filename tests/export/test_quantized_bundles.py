"""Bundles of fewer bits: what they hold, that every spelling gives the same numbers, and what calibration reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pixelrt
import pytest
from PIL import Image
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.segmenter import open_bundle
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import QUESTION, read_records

QUESTIONS = ("Segment the mug.", "Where is the red book?")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three noisy pictures, two of them asked about."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 60, 3), (64, 64, 3), (70, 30, 3)]):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")
    rows = [{"image": f"{i}.png", "prompt": text} for i, text in enumerate(QUESTIONS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["int8", "int4"])
def bundle(
    request: pytest.FixtureRequest,
    golden_checkpoint_a: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    target = tmp_path_factory.mktemp("bundles") / request.param
    return export_bundle(
        golden_checkpoint_a, target, precision=request.param, settings=Settings(calib=pictures)
    )


def test_the_manifest_says_what_was_done(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    about, language = manifest["quantization"], manifest["precision"]["language"]
    assert about["calibration"]["questions"] == 2
    assert about["language"]["form"] == language == bundle.name
    assert ("encoder" in about) == (bundle.name == "int8")
    assert manifest["embeddings"]["dtype"] == "float16"


def test_head_projectors_and_decoder_stay_in_16_bits(bundle: Path) -> None:
    """Everything outside the towers and the language model's layers."""
    import onnx

    for file in bundle.glob("*.fp32.onnx"):
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            narrow = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8) and tensor.dims
            inside = tensor.name.startswith(("language.layers.", "clip.layers."))
            assert inside or not narrow, tensor.name


def test_every_spelling_gives_the_same_answer(bundle: Path) -> None:
    read, image = Bundle.read(bundle), np.random.default_rng(3).integers(0, 256, (50, 60, 3), np.uint8)
    answers = []
    for activations in ("float32", "float16"):
        for compatible in (False, True):
            backend = OrtBackend(read, activations=activations, compatible=compatible)
            answer = open_bundle(read, backend).segment(image, "Segment it.", max_new_tokens=8)
            answers.append([mask.low_res_logits for mask in answer.masks])
    first = answers[0]
    assert first
    for other in answers[1:]:
        for a, b in zip(first, other, strict=True):
            # fp16 activations: 11 bits through some twenty layers; and a value between two int8 steps may fall
            # to the other one.
            assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)
    for a, b in zip(first, answers[1], strict=True):
        # The twin sums in another order, which flips an int8 step of an activation here and there.
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


def test_the_same_pictures_give_the_same_bytes(
    golden_checkpoint_a: Path, pictures: Path, bundle: Path, tmp_path: Path
) -> None:
    again = export_bundle(
        golden_checkpoint_a, tmp_path / bundle.name, precision=bundle.name, settings=Settings(calib=pictures)
    )
    for file in bundle.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_layers_can_be_kept(golden_checkpoint_a: Path, pictures: Path, tmp_path: Path) -> None:
    import onnx

    kept = {"language.layers.0.q_proj", "language.layers.1.down_proj"}
    settings = Settings(calib=pictures, keep=frozenset(kept))
    out = export_bundle(golden_checkpoint_a, tmp_path / "b", precision="int4", settings=settings)
    graph = onnx.load(out / "language.fp32.onnx", load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    for name in kept:
        assert f"{name}.weight" in names and f"{name}.weight.int4" not in names
    assert json.loads((out / "manifest.json").read_text())["quantization"]["kept"] == sorted(kept)
    assert len(pixelrt.load(out).segment(pictures / "0.png", "Segment it.", max_new_tokens=8).masks) == 1


def test_psalm_too(golden_psalm_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    """Two words are enough: both quantisers go through the same graphs."""
    for precision in ("int8", "int4"):
        out = export_bundle(
            golden_psalm_checkpoint,
            tmp_path / precision,
            precision=precision,
            settings=Settings(calib=pictures),
        )
        answer = pixelrt.load(out).segment(pictures / "0.png", "the red mug")
        assert len(answer.masks) == 1 and np.isfinite(answer.masks[0].score)


def test_a_layer_is_rounded_before_the_next_is_read(
    golden_checkpoint_a: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory holds one layer: no weight of a layer is asked for after one of a later layer."""
    from pixelrt_export.checkpoint import Checkpoint

    read: list[int] = []
    original = Checkpoint.tensor

    def tensor(self: Checkpoint, key: str) -> np.ndarray:
        if match := re.match(r"model\.layers\.(\d+)\..*proj", key):
            read.append(int(match[1]))
        return original(self, key)

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    export_bundle(golden_checkpoint_a, tmp_path / "b", precision="int4", settings=Settings(calib=pictures))
    assert read == sorted(read) and len(set(read)) > 1


def test_records(pictures: Path, tmp_path: Path) -> None:
    assert [(r.image.name, r.prompt) for r in read_records(pictures)] == [
        ("0.png", QUESTIONS[0]),
        ("1.png", QUESTIONS[1]),
    ]
    assert len(read_records(None)) == 12
    Image.new("RGB", (4, 4)).save(tmp_path / "a.JPG")
    assert [(r.image.name, r.prompt) for r in read_records(tmp_path)] == [("a.JPG", QUESTION)]
    assert [r.query for r in read_records(tmp_path, typed=True)] == [Refer(QUESTION)]


def test_typed_records(pictures: Path, tmp_path: Path) -> None:
    """A line may ask in words, in any of the typed ways, or both; prompts are sentences where nothing is typed."""
    assert [r.query for r in read_records(pictures, typed=True)] == [Refer(text) for text in QUESTIONS]
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    rows: list[dict[str, object]] = [
        {"image": "a.png", "prompt": "Segment it."},
        {"image": "b.png", "refer": "the mug", "classes": ["mug", "cup"]},
        {"image": "b.png", "prompt": "And this.", "points": [[1, 2]], "boxes": [[0, 0, 2, 2]]},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [(r.image.name, r.prompt) for r in read_records(tmp_path)] == [
        ("a.png", "Segment it."),
        ("b.png", "And this."),
    ]
    sentence, classes, regions = (r.query for r in read_records(tmp_path, typed=True))
    assert sentence == Refer("the mug") and classes == Classes(["mug", "cup"])
    assert isinstance(regions, Regions) and regions.each() == [("points", ((1, 2),)), ("boxes", (0, 0, 2, 2))]
    (tmp_path / "prompts.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(InputError, match='holds no "prompt"'):
        read_records(tmp_path)


def test_the_project_s_own_ask_in_every_way() -> None:
    kinds = [type(r.query) for r in read_records(None, typed=True)]
    assert {kind: kinds.count(kind) for kind in kinds} == {Refer: 6, Classes: 2, Regions: 4}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("{", "line 1 is not JSON"),
        ('{"image": "a.png", "prompt": "x"}\n{"image": "b.png", "prompt": "x"}', "line 2 names 'b.png'"),
        ('{"image": "a.png"}', "wanted"),
        ('{"image": "a.png", "prompt": "x", "answer": 3}', "wanted"),
        ('{"image": "a.png", "refer": 3}', "line 1: "),
        ('{"image": "a.png", "classes": "mug"}', "line 1: a list of class names"),
        ('{"image": "a.png", "points": []}', "line 1: 0 regions"),
        ('{"image": "a.png", "boxes": [[1, 1, 1, 1]]}', "line 1: a box"),
        ("\n", "holds no questions"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, lines: str, sentence: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "prompts.jsonl").write_text(lines)
    with pytest.raises(InputError, match=sentence):
        read_records(tmp_path)


def test_folders_that_hold_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        read_records(tmp_path / "none")
    monkeypatch.setattr("pixelrt_export.quantize.records.DEFAULT", tmp_path / "none")
    with pytest.raises(InputError, match="--calib DIR"):
        read_records(None)


def test_a_damaged_picture_ends_the_export_in_one_sentence(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a picture"):
        export_bundle(
            golden_checkpoint_a, tmp_path / "b", precision="int4", settings=Settings(calib=tmp_path / "c")
        )
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
