"""`export_bundle` and `pixelrt export`: what is written, what is refused, and that nothing is half written."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner
from PIL import Image
from pixelrt.bundle import Bundle
from pixelrt.cli import main
from pixelrt.errors import InputError
from pixelrt_export import families
from pixelrt_export.export import export_bundle
from pixelrt_export.licence import UNSTATED, licence_of
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.sink import table_dtype
from pixelrt_export.weight_file import WeightFile, narrowed
from safetensors.numpy import load_file, save_file


@pytest.fixture
def checkpoint(golden_checkpoint_a: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil, its CLIP beside it."""
    shutil.copytree(golden_checkpoint_a.parent, tmp_path / "copy")
    return tmp_path / "copy" / "pixellm"


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def change_tensor(checkpoint: Path, key: str, change) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors[key] = change(tensors[key])
    save_file(tensors, file, metadata={"format": "pt"})


def test_same_checkpoint_same_bytes(golden_checkpoint_a: Path, golden_bundle_a: Path, tmp_path: Path) -> None:
    again = export_bundle(golden_checkpoint_a, tmp_path / golden_bundle_a.name)
    for file in golden_bundle_a.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_manifest_says_where_it_comes_from(golden_bundle_a: Path) -> None:
    manifest = json.loads((golden_bundle_a / "manifest.json").read_text())
    assert manifest["precision"] == {"encoder": "fp32", "language": "fp32", "pixel_decoder": "fp32"}
    assert manifest["license"] == UNSTATED
    provenance = manifest["provenance"]
    assert {"model.safetensors", "config.json", "clip/model.safetensors"} <= set(provenance["files"])
    assert any("iou_prediction_head" in name for name in provenance["left_out"])


def test_stages_have_precisions_of_their_own(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b", precision="fp16", stages={"language": "fp32"})
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["precision"] == {"encoder": "fp16", "language": "fp32", "pixel_decoder": "fp16"}
    answer = pixelrt.load(bundle).segment(np.zeros((20, 30, 3), np.uint8), "Segment it.", max_new_tokens=8)
    assert len(answer.masks) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "released"])
def test_bf16_checkpoints_lose_nothing(golden_pixellm: Path, tmp_path: Path, dtype: str) -> None:
    """bf16 weights become fp32 exactly; the token table stays bf16."""
    write = runpy.run_path(str(golden_pixellm / "make_checkpoint.py"))["write_checkpoint"]
    folder = write(tmp_path, "A", dtype, "sharded-bin")
    bundle = export_bundle(folder, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["embeddings"]["dtype"] == "bfloat16"
    seg = pixelrt.load(bundle)
    from pixelrt_export.checkpoint import Checkpoint

    rows = Checkpoint.open(folder).tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(seg.table(range(len(rows))), rows.astype(np.float32))


def test_token_table_takes_the_narrowest_faithful_type() -> None:
    exact = np.float32([[1.5, -0.25]])
    odd = np.float32([[1.0001, 3.0]])
    huge = np.float32([[1e6]])
    assert table_dtype((exact.astype(ml_dtypes.bfloat16),), "fp32") == "bfloat16"
    assert table_dtype((exact,), "fp32") == "float16"
    assert table_dtype((odd,), "fp32") == "float32"
    assert table_dtype((exact, odd), "fp32") == "float32"
    assert table_dtype((odd,), "fp16") == "float16"
    assert table_dtype((huge,), "fp16") == "float32"


@pytest.mark.parametrize(
    ("precision", "stages", "sentence"),
    [
        ("fp8", {}, "Choose one of: fp32, fp16, int8, int4, nf4"),
        ("fp32", {"encoder": "int4"}, "encoder cannot be stored in 'int4'. Choose one of: fp32, fp16, int8"),
        ("fp32", {"head": "fp16"}, "no such stage"),
    ],
)
def test_precisions_that_are_not_there(
    golden_checkpoint_a: Path, tmp_path: Path, precision: str, stages: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        export_bundle(golden_checkpoint_a, tmp_path / "b", precision=precision, stages=stages)
    assert left_in(tmp_path) == set()


def test_values_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    change_tensor(checkpoint, "model.layers.0.mlp.up_proj.weight", lambda w: w * 0 + 1e5)
    export_bundle(checkpoint, tmp_path / "fp32")
    with pytest.raises(InputError, match=r"layers\.0\.up_proj.* does not fit float16.*fp32"):
        export_bundle(checkpoint, tmp_path / "fp16", precision="fp16")
    change_tensor(checkpoint, "model.layers.0.mlp.up_proj.weight", lambda w: w * np.nan)
    with pytest.raises(InputError, match="not finite"):
        export_bundle(checkpoint, tmp_path / "nan")
    assert left_in(tmp_path) == {"copy", "fp32"}


def test_a_failed_export_leaves_the_old_bundle(
    golden_checkpoint_a: Path, golden_bundle_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(golden_bundle_a, tmp_path / "bundle"))
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    class Broken:
        TYPED = False

        @staticmethod
        def sources(checkpoint, vision_tower):
            return {"": checkpoint}

        @staticmethod
        def write_bundle(checkpoint, sink) -> None:
            sink.text("tokenizer.json", "{}")
            raise KeyboardInterrupt

    monkeypatch.setattr("pixelrt_export.export.family_of", lambda kind: Broken)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(golden_checkpoint_a, target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert left_in(tmp_path) == {"bundle", ".bundle.partial"}  # to go on with
    monkeypatch.undo()
    export_bundle(golden_checkpoint_a, target, precision="fp16")
    assert json.loads((target / "manifest.json").read_text())["precision"]["language"] == "fp16"
    assert left_in(tmp_path) == {"bundle"}


def test_other_folders_are_not_overwritten(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for target in ("mine", "file"):
        with pytest.raises(InputError, match="does not overwrite"):
            export_bundle(golden_checkpoint_a, tmp_path / target)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    assert export_bundle(golden_checkpoint_a, tmp_path / "empty").is_dir()


def test_folders_that_only_look_like_bundles(
    golden_checkpoint_a: Path, golden_bundle_a: Path, tmp_path: Path
) -> None:
    """A manifest.json of another kind, and a bundle with somebody's notes in it, are left alone."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"manifest_version": 3}')
    bundle = Path(shutil.copytree(golden_bundle_a, tmp_path / "bundle"))
    (bundle / "NOTES.md").write_text("keep")
    with pytest.raises(InputError, match="is not a bundle"):
        export_bundle(golden_checkpoint_a, tmp_path / "app")
    with pytest.raises(InputError, match=r"holds NOTES\.md"):
        export_bundle(golden_checkpoint_a, bundle)
    assert (tmp_path / "app" / "manifest.json").is_file() and (bundle / "NOTES.md").is_file()


def test_a_link_to_a_bundle_stays_a_link(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        assert export_bundle(golden_checkpoint_a, tmp_path / "link") == tmp_path / "link"
    assert left_in(tmp_path) == {"link", "real"} and (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real" / "manifest.json").read_text())["name"] == "real"


def test_counts_that_do_not_fit_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12}))
    with pytest.raises(InputError, match="more than there are tensors"):
        export_bundle(checkpoint, tmp_path / "b")
    (checkpoint / "config.json").write_text(json.dumps(config))
    added = json.loads((checkpoint / "added_tokens.json").read_text())
    (checkpoint / "added_tokens.json").write_text(json.dumps(added | {"[MORE]": 408}))
    with pytest.raises(InputError, match="409 ids and its model 408"):
        export_bundle(checkpoint, tmp_path / "b")


def test_unknown_family(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "sam"}))
    with pytest.raises(InputError, match="model_type 'sam'"):
        export_bundle(checkpoint, tmp_path / "b")
    assert families.family_of("llava").__name__ == "pixelrt_export.families.pixellm"


def test_command(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "golden"
    done = CliRunner().invoke(main, ["export", str(golden_checkpoint_a), str(target), "--precision", "fp16"])
    assert done.exit_code == 0, done.output
    assert str(target) in done.output and "next: pixelrt segment" in done.output
    refused = CliRunner().invoke(main, ["export", str(tmp_path / "none"), str(target)])
    assert refused.exit_code == 2
    assert refused.output.startswith("error: ") and refused.output.count("\n") == 1


def test_nearest_is_for_int4(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["export", str(golden_checkpoint_a), str(tmp_path / "b"), "--nearest"])
    assert refused.exit_code == 2 and "--nearest is a way of rounding to int4" in refused.output
    given = ["--nearest", "--precision", "int4", "--no-gate"]
    done = CliRunner().invoke(main, ["export", str(golden_checkpoint_a), str(tmp_path / "b"), *given])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "b" / "manifest.json").read_text())["quantization"]
    assert about == {"language": {"form": "int4", "rounds": "weights", "block": 32, "by": "nearest"}}


def test_ctrl_c_says_what_to_do(
    golden_checkpoint_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pixelrt_export.export.export_bundle", stop)
    stopped = CliRunner().invoke(main, ["export", str(golden_checkpoint_a), str(tmp_path / "b")])
    assert stopped.exit_code == 130 and stopped.output == "stopped; the same command goes on where this was\n"


def test_licence(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == UNSTATED
    (tmp_path / "LICENSE.txt").write_text("words")
    assert licence_of(tmp_path) == "see LICENSE.txt of the checkpoint"
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# card\n")
    assert licence_of(tmp_path) == "apache-2.0"


def test_weight_file(tmp_path: Path) -> None:
    made = []

    def make(value: float):
        def array() -> np.ndarray:
            made.append(value)
            return np.full((3, 5), value)

        return array

    with WeightFile(tmp_path / "w") as weights:
        a, b = weights.put("a", "float32", make(1)), weights.put("b", "float16", make(2))
        assert weights.put("a", "float32", make(3)) == a
        with pytest.raises(ValueError, match="asked for as float16"):
            weights.put("a", "float16", make(1))
    assert made == [1, 2]
    content = (tmp_path / "w").read_bytes()
    assert np.frombuffer(content, np.float16, 15, b.offset).tolist() == [2.0] * 15
    assert narrowed("x", np.zeros((2, 3)).T, "float32").flags.c_contiguous


def test_golden_outputs_are_part_of_the_bundle(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    """The same bytes each time; without them an export says so in its manifest by leaving them out."""
    command = ["export", str(golden_checkpoint_a)]
    hashes = []
    for name in ("a", "b"):
        done = CliRunner().invoke(main, [*command, str(tmp_path / name)])
        assert done.exit_code == 0 and "no golden outputs" not in done.output, done.output
        manifest = Bundle.read(tmp_path / name).manifest
        assert manifest["goldens"] == {"file": "goldens.npz", "questions": ["asked", "named"]}
        hashes.append(manifest["files"]["goldens.npz"]["sha256"])
    assert hashes[0] == hashes[1]
    done = CliRunner().invoke(main, [*command, str(tmp_path / "b"), "--no-goldens"])
    assert done.exit_code == 0
    assert (
        "goldens" not in Bundle.read(tmp_path / "b").manifest
        and not (tmp_path / "b" / "goldens.npz").exists()
    )


def test_an_export_without_golden_outputs_says_why(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    def refuses(folder: Path) -> dict:
        assert Bundle.read(folder).manifest["files"]
        raise InputError("onnxruntime is not installed. Run: pip install 'pixelrt[cpu]'")

    said: list[str] = []
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b", goldens=refuses, note=said.append)
    assert "goldens" not in Bundle.read(bundle).manifest
    assert said == [
        "no golden outputs: onnxruntime is not installed. Run: pip install 'pixelrt[cpu]'; TensorRT engines of this "
        "bundle cannot be verified"
    ]


def engines_in(bundle: Path, content: bytes = b"an engine") -> Path:
    folder = bundle / "engines" / "orin-nano"
    folder.mkdir(parents=True)
    for name in (
        "engines.json",
        "verdict.json",
        "encoder.engine",
        "timing.cache",
        ".lock",
        ".encoder.engine.partial",
    ):
        (folder / name).write_bytes(content)
    (bundle / "LICENSES.txt").write_text("as unpack writes it")
    return folder


def test_a_bundle_with_its_engines_is_replaced_and_keeps_them(
    golden_checkpoint_a: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b")
    engines = engines_in(bundle)
    export_bundle(golden_checkpoint_a, bundle, precision="fp16")
    assert json.loads((bundle / "manifest.json").read_text())["precision"]["language"] == "fp16"
    assert (engines / "encoder.engine").read_bytes() == b"an engine"
    assert left_in(tmp_path) == {"b"}


def test_what_is_no_engine_among_them_is_not_deleted(golden_checkpoint_a: Path, tmp_path: Path) -> None:
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b")
    engines = engines_in(bundle)
    (engines / "measured.csv").write_text("keep")
    with pytest.raises(
        InputError, match=r"holds engines/orin-nano/measured\.csv, which pixelrt did not write"
    ):
        export_bundle(golden_checkpoint_a, bundle)
    assert (engines / "measured.csv").read_text() == "keep"


def test_engines_stay_where_the_new_bundle_cannot_be_put_in_place(
    golden_checkpoint_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b")
    engines = engines_in(bundle)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            raise OSError("no room")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no room"):
        export_bundle(golden_checkpoint_a, bundle, precision="fp16")
    monkeypatch.undo()
    assert (engines / "encoder.engine").is_file()
    assert Bundle.read(bundle).manifest["precision"]["language"] == "fp32"


def test_answers_of_the_calibration_folder_are_drafted_from(
    golden_checkpoint_a: Path, golden_bundle_a: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    rows = [
        {"image": "a.png", "prompt": "Find the mug.", "answer": "Here: mug [SEG]!"},
        {"image": "a.png", "prompt": "?"},
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = export_bundle(golden_checkpoint_a, tmp_path / "b", settings=Settings(calib=folder))
    manifest = Bundle.read(bundle).manifest
    assert manifest["drafts"] == [{"prompt": "Find the mug.", "answer": "Here: mug [SEG]!"}]
    assert "drafts" not in Bundle.read(golden_bundle_a).manifest
    segmenter: Any = pixelrt.load(bundle)
    draft = segmenter.drafts.of(segmenter.prompt("Find the mug.").tail)
    assert segmenter.render(draft([])[0])[0] == "Here: mug [SEG]!"
