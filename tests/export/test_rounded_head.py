"""`--head`: the language model's head in few bits, where its layers are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError
from pixelrt_export import cli
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.verify.bundle import open_original
from pixelrt_export.verify.stored import compare_stored

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {
        head: export_bundle(
            TINY, folder / (head or "wide"), precision="int4", settings=Settings(calibrated=False, head=head)
        )
        for head in ("", "int8", "int4")
    }


def logits(bundle: Path, compatible: bool) -> np.ndarray:
    """Of 64 rows that the head reads after made-up embeddings."""
    read = Bundle.read(bundle)
    engine = OrtBackend(read, compatible=compatible).open("language")
    rng, count = np.random.default_rng(2), 64
    inputs = {
        "inputs_embeds": np.float32(rng.standard_normal((1, count, 128))),
        "position_ids": np.arange(count)[None],
        "attn_mask": np.tri(count, dtype=np.bool_)[None, None],
        "write_indices": np.zeros(1, np.int64),
        "logit_rows": np.arange(count),
    }
    for tensor in engine.file.inputs:
        if tensor.name.startswith("past."):
            _, heads, _, width = tensor.shape
            inputs[tensor.name] = np.zeros(
                (1, int(heads), 0 if compatible else count, int(width)), np.float32
            )
    return np.asarray(engine(inputs)["logits"])[0]


def products(bundle: Path, folder: Path) -> int:
    """Products with 4- or 8-bit weights that ONNX Runtime makes of the language graph."""
    import onnx

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    file = Bundle.read(bundle).graph("language", activations="float32")
    onnxruntime.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    return sum(node.op_type == "MatMulNBits" for node in nodes)


@pytest.mark.parametrize(("head", "off"), [("int8", 0.02), ("int4", 0.15)])
def test_the_head_is_rounded_and_nothing_else(
    bundles: dict[str, Path], tmp_path: Path, head: str, off: float
) -> None:
    """off: half a step of 127, and one of 7, of a row's largest weight is 0.3 % and 6 % of it; rows are even."""
    rounded, wide = bundles[head], bundles[""]
    about = json.loads((rounded / "manifest.json").read_text())["quantization"]
    assert about["head"] == {"form": head, "rounds": "weights"} and about["language"]["form"] == "int4"
    assert products(rounded, tmp_path) == products(wide, tmp_path) + 1
    assert (rounded / "weights.data").stat().st_size < (wide / "weights.data").stat().st_size
    for compatible in (False, True):
        a, b = logits(rounded, compatible), logits(wide, compatible)
        assert 0 < np.linalg.norm(a - b) < off * np.linalg.norm(b)


def test_what_is_stored_is_read_back_as_the_head(bundles: dict[str, Path]) -> None:
    original = open_original(TINY)
    for head in ("int8", "int4"):
        found = compare_stored(Bundle.read(bundles[head]), original.checkpoint, original.vision_tower)
        (whole,) = [f for f in found if f.where == "stored language.lm_head.weight"]
        assert whole.passed and whole.error > 1e-3
        assert all(finding.passed for finding in found)


def test_a_head_can_be_kept(tmp_path: Path) -> None:
    kept = Settings(calibrated=False, head="int8", keep=frozenset({"language.lm_head"}))
    bundle = export_bundle(TINY, tmp_path / "b", precision="int4", settings=kept)
    about = json.loads((bundle / "manifest.json").read_text())["quantization"]
    assert "head" not in about and about["kept"] == ["language.lm_head"]


def test_heads_that_cannot_be_rounded(golden_psalm_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no head over words"):
        export_bundle(
            golden_psalm_checkpoint, tmp_path / "p", precision="int8", settings=Settings(head="int8")
        )
    with pytest.raises(InputError, match="goes with rounded layers"):
        export_bundle(TINY, tmp_path / "b", precision="fp16", settings=Settings(head="int8"))
    asked = [str(TINY), str(tmp_path / "b"), "--precision", "fp16", "--head", "int8"]
    done = CliRunner().invoke(cli.export, asked)
    assert isinstance(done.exception, InputError) and "goes with rounded layers" in str(done.exception)
    assert not list(tmp_path.iterdir())
