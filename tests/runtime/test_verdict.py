"""Engines are run once they gave the bundle's golden outputs on this GPU: over the test doubles (tests/doubles).

The doubles show that the right comparisons are made and that a stage that computes wrong numbers is named; what real
engines give, only a GPU shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pixelrt
import pytest
from click.testing import CliRunner
from pixelrt import backends
from pixelrt.bundle import write_manifest
from pixelrt.cli import main
from pixelrt.engines import folder_of
from pixelrt.errors import InputError, PixelrtWarning
from pixelrt.goldens.make import make_goldens
from pixelrt.verdict import FILE, read_verdict, write_verdict

from tests.doubles.bundle import Sizes, installed, with_engines

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
SIZES = Sizes(cache=640, prefill=128)


def exported(name: str, factory: pytest.TempPathFactory, **how: Any) -> Path:
    pytest.importorskip("safetensors", reason="needs the export extra")
    from pixelrt_export.export import export_bundle

    return export_bundle(CHECKPOINTS / name, factory.mktemp("bundles") / name, goldens=make_goldens, **how)


@pytest.fixture(scope="module")
def pixellm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("pixellm-tiny", tmp_path_factory)


@pytest.fixture(scope="module")
def psalm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("psalm-tiny", tmp_path_factory)


@pytest.fixture(autouse=True)
def no_gpu_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels by emulation would take minutes; tests/runtime/test_cuda.py has them."""
    monkeypatch.setattr("pixelrt.cuda_masks._built", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu_is_there", lambda: True)


def verify(folder: Path, *options: str) -> Any:
    with installed():
        return CliRunner().invoke(main, ["verify", str(folder), "--backend", "tensorrt", *options])


def verdict_of(folder: Path) -> Any:
    return read_verdict(folder_of(folder, "orin-nano", "tensorrt"))


# ---- engines that are right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["language", "language_compat"])
def test_engines_that_agree_are_run_from_then_on(pixellm: Path, tmp_path: Path, language: str) -> None:
    folder = with_engines(pixellm, tmp_path / "b", SIZES, language, verified=False)
    with installed(), pytest.raises(InputError, match=r"is not verified yet. Run here: pixelrt verify "):
        pixelrt.load(folder, backend="tensorrt")
    done = verify(folder)
    assert done.exit_code == 0, done.output
    for stage in ("encoder", "language", "pixel_decoder", "answer", "masks"):
        assert f"\n{stage} " in done.output
    found = verdict_of(folder)
    assert found.passed and found.device == "a test double"
    with installed():
        assert pixelrt.load(folder, backend="tensorrt").backend.startswith("TensorRT")


def test_of_psalm_too_in_fp16(psalm: Path, tmp_path: Path) -> None:
    """All three kinds of conditions; fp16 rounds, and is not off by more."""
    folder = with_engines(psalm, tmp_path / "b", activations="float16", verified=False)
    done = verify(folder)
    assert done.exit_code == 0, done.output
    findings = verdict_of(folder).findings
    assert 0 < max(finding["error"] for finding in findings) < 0.005
    where = {finding["where"] for finding in findings}
    assert {"sentence.queries", "class.mask_logits", "region.conditions"} <= where


def test_pictures_and_targets_are_run_in_batches_too(pixellm: Path, tmp_path: Path) -> None:
    folder = with_engines(pixellm, tmp_path / "b", replace(SIZES, batch=2), verified=False)
    assert verify(folder).exit_code == 0
    where = {finding["where"] for finding in verdict_of(folder).findings}
    assert "image_tokens as the second of two pictures" in where
    assert {"named.low_res_masks", "named.first drawn alone"} <= where


# ---- engines that are wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spoiled"),
    [
        ("pixellm", "encoder.level1"),
        ("pixellm", "language.hidden"),
        ("pixellm", "language.logits"),
        ("pixellm", "pixel_decoder.low_res_masks"),
        ("psalm", "language.queries"),
        ("psalm", "pixel_decoder.scores"),
    ],
)
def test_the_stage_with_wrong_numbers_is_named_and_refused(
    name: str, spoiled: str, request: pytest.FixtureRequest, tmp_path: Path, gpu: None
) -> None:
    folder = with_engines(request.getfixturevalue(name), tmp_path / "b", verified=False, spoiled=spoiled)
    done = verify(folder)
    graph = spoiled.partition(".")[0]
    assert done.exit_code == 1
    assert f"failed: {graph}, " in done.output
    found = verdict_of(folder)
    assert (found.passed, found.stage) == (False, graph)
    with (
        installed(),
        pytest.warns(PixelrtWarning, match=f"did not pass its verification: {graph}, .*pixelrt verify"),
    ):
        assert pixelrt.load(folder).backend == "onnxruntime-cpu"


def test_an_engine_that_fails_to_run_is_named(
    pixellm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.doubles import tensorrt

    folder = with_engines(pixellm, tmp_path / "b", verified=False)
    fails = tensorrt.Context.execute_async_v3
    monkeypatch.setattr(
        tensorrt.Context,
        "execute_async_v3",
        lambda self, stream: "logits" not in self.engine.tensors and fails(self, stream),
    )
    done = verify(folder)
    assert done.exit_code == 1
    assert "failed: language, run: RuntimeError: TensorRT failed to run the language engine" in done.output


# ---- what a verdict speaks of --------------------------------------------------------------------------------


@pytest.fixture
def good(pixellm: Path, tmp_path: Path) -> Path:
    return with_engines(pixellm, tmp_path / "b", activations="float16")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"device": "Orin"},
            "not verified here: it was verified on Orin, this GPU is a test double. Run here: pixel",
        ),
        ({"engines": {}}, "not verified here: engines were built since. Run here: pixelrt verify"),
        ({"goldens": "0" * 64}, "the bundle's golden outputs are others. Run here"),
        ({"passed": None, "words": "built for another machine (sm_89)"}, "here: built for another machine"),
        (
            {"passed": False, "words": "encoder, x: off by 1"},
            "did not pass its verification: encoder, x: off by 1",
        ),
    ],
)
def test_each_verdict_that_is_none_has_its_sentence(
    good: Path, change: dict[str, Any], sentence: str
) -> None:
    at = folder_of(good, "orin-nano", "tensorrt")
    write_verdict(at, replace(verdict_of(good), **change))
    with installed(), pytest.raises(InputError, match=sentence):
        pixelrt.load(good, backend="tensorrt")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2}', b'{"format": 1, "passed": true}'])
def test_a_verdict_that_cannot_be_read_is_none(good: Path, content: bytes) -> None:
    (folder_of(good, "orin-nano", "tensorrt") / FILE).write_bytes(content)
    with installed(), pytest.raises(InputError, match="is not verified yet"):
        pixelrt.load(good, backend="tensorrt")


def test_a_verification_that_ends_the_process_leaves_no_verdict(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(BaseException):
        pass

    def gone(*arguments: Any) -> Any:
        raise Gone

    monkeypatch.setattr("pixelrt.goldens.engines.check", gone)
    with pytest.raises(Gone):
        verify(good)
        raise Gone  # click turns it into an exit
    assert verdict_of(good).passed is None
    with installed(), pytest.raises(InputError, match="its verification did not come to an end"):
        pixelrt.load(good, backend="tensorrt")


# ---- bundles without golden outputs, other golden outputs ----------------------------------------------------


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    import shutil

    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = list(manifest.pop("files"))
    change(manifest)
    write_manifest(folder, manifest, names)
    return folder


def test_a_bundle_of_before(pixellm: Path, tmp_path: Path, gpu: None) -> None:
    old = changed(pixellm, tmp_path / "old", lambda manifest: manifest.pop("goldens"))
    done = CliRunner().invoke(main, ["verify", str(old)])
    assert done.exit_code == 2 and "holds no golden outputs to compare with: an older pixelrt" in done.output
    folder = with_engines(old, tmp_path / "b", verified=False)
    with (
        installed(),
        pytest.warns(PixelrtWarning, match="cannot be verified, for .* Export the bundle again"),
    ):
        assert pixelrt.load(folder).backend == "onnxruntime-cpu"


def test_engines_too_small_for_the_questions(pixellm: Path, tmp_path: Path) -> None:
    folder = with_engines(pixellm, tmp_path / "b", Sizes(cache=64, prefill=32), verified=False)
    done = verify(folder)
    assert done.exit_code == 2 and "Build engines with a larger --cache-length" in done.output
    with (
        installed(),
        pytest.raises(InputError, match="not verified here: The golden questions cannot be asked"),
    ):
        pixelrt.load(folder, backend="tensorrt")


def test_on_the_cpu_without_engines(pixellm: Path) -> None:
    done = CliRunner().invoke(main, ["verify", str(pixellm)])
    assert done.exit_code == 0, done.output
    assert "golden outputs on onnxruntime-cpu" in done.output and "\npassed: " in done.output
