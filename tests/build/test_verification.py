"""What `pixelrt build` does behind the last engine: verify where it can, say so where it cannot, take fp16 where a
rounded stage fails. Engines are those of the runtime's double (tests/doubles); the builder is a function that
writes one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pixelrt.build import verification
from pixelrt.build.builder import Site, Wish
from pixelrt.build.process import Outcome
from pixelrt.build.targets import TARGETS
from pixelrt.build.verification import advice, verify_built
from pixelrt.bundle import Bundle
from pixelrt.engines import folder_of, read_engines
from pixelrt.goldens.make import make_goldens
from pixelrt.gpu import Gpu
from pixelrt.tensorrt import open_library
from pixelrt.verdict import Verdict, read_verdict

from tests.doubles.bundle import ARCHITECTURE, installed, with_engines
from tests.doubles.tensorrt import plan

ORIN = Gpu("Orin", ARCHITECTURE, 8 << 30, True, "12.6")


@pytest.fixture(scope="module")
def int8(golden_checkpoint_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose encoder is rounded, activations and all."""
    return _exported(golden_checkpoint_a, tmp_path_factory.mktemp("int8"), encoder="int8")


@pytest.fixture(scope="module")
def fp16(golden_checkpoint_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(golden_checkpoint_a, tmp_path_factory.mktemp("fp16"))


def _exported(checkpoint: Path, folder: Path, **stages: str) -> Path:
    import numpy as np
    from PIL import Image
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    (folder / "pictures").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "pictures" / "0.png")
    settings = Settings(calib=folder / "pictures")
    return export_bundle(
        checkpoint, folder / "b", precision="fp16", stages=stages, settings=settings, goldens=make_goldens
    )


def site(folder: Path, gpu: Gpu | None = ORIN) -> Site:
    return Site(
        open_library("tensorrt"), gpu, TARGETS["orin-nano"], folder_of(folder, "orin-nano", "tensorrt")
    )


def verified(folder: Path, gpu: Gpu | None = ORIN, **wish: Any) -> tuple[Verdict, str, list[str]]:
    """The verdict, the advice, and what was said."""
    lines: list[str] = []
    with installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixelrt.cuda_masks._built", lambda: False)
        where, bundle = site(folder, gpu), Bundle.read(folder, verify=False)
        engines = read_engines(where.folder)
        verdict = verify_built(bundle, where, Wish(**wish), engines, say=lines.append)
        assert read_verdict(where.folder) == verdict
        return verdict, advice(bundle, where, read_engines(where.folder), verdict), lines


def test_engines_are_verified_and_not_twice(fp16: Path, tmp_path: Path) -> None:
    folder = with_engines(fp16, tmp_path / "b", activations="float16", verified=False)
    first, _, said = verified(folder)
    assert first.passed and "comparisons with the bundle's golden outputs" in first.words and said == []
    again, _, said = verified(folder)
    assert again == first and said == ["verified before, with the same golden outputs"]


def test_engines_for_another_machine_are_not_verified(fp16: Path, tmp_path: Path) -> None:
    folder = with_engines(fp16, tmp_path / "b", verified=False)
    verdict, then, _ = verified(folder, gpu=None)
    assert (verdict.passed, verdict.words) == (None, "built for another machine (sm_87)")
    assert then == f"copy {folder} to the orin-nano and run there: pixelrt verify {folder}"


def test_without_golden_outputs_it_says_so(fp16: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(fp16, tmp_path / "old"))
    manifest = (source / "manifest.json").read_text().replace('"goldens": {', '"silvers": {')
    (source / "manifest.json").write_text(manifest)
    verdict, _, _ = verified(with_engines(source, tmp_path / "b", verified=False))
    assert verdict.passed is None and "an older pixelrt exported it" in verdict.words


def test_without_pycuda_it_says_so(fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrt.errors import MissingExtra

    def missing(*arguments: Any, **more: Any) -> Any:
        raise MissingExtra("pycuda", "cuda")

    monkeypatch.setattr(verification, "open_backend", missing)
    verdict, then, _ = verified(with_engines(fp16, tmp_path / "b", verified=False))
    assert verdict.passed is None and "pip install 'pixelrt[cuda]'" in verdict.words
    assert "pixelrt verify" in then


def test_a_rounded_stage_that_fails_is_taken_in_fp16_and_verified_again(
    int8: Path, fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_engines(int8, tmp_path / "b", verified=False, precision="int8")
    at = folder_of(folder, "orin-nano", "tensorrt")
    record = read_engines(at).records["encoder"]
    broken = with_engines(
        int8, tmp_path / "c", verified=False, spoiled="encoder.level1", factor=3.0, precision="int8"
    )
    shutil.copytree(broken / "engines", folder / "engines", dirs_exist_ok=True)
    verdict, then, _ = verified(folder)
    assert (verdict.passed, verdict.stage) == (False, "encoder")
    assert "--encoder fp16" in then and "--fallback FP16_BUNDLE" in then

    def built(site: Site, wish: Wish, target: Any, part: Any, refused: str, say: Any, tell: Any) -> Outcome:
        from dataclasses import replace

        assert part.precision == "fp16" and part.graph == "encoder"
        profiles = list(record.profiles.values())
        target.partial(part.engine).write_bytes(plan(part.file.path, profiles))
        changes = {"precision": "fp16", "refused": refused}
        changes |= {"fingerprint": part.fingerprint, "stands_for": part.stands_for}
        target.put(replace(record, activations="float16", **changes))
        return Outcome({"layers": 1})

    monkeypatch.setattr(verification, "build_part", built)
    verdict, _, said = verified(folder, fallback=fp16)
    assert verdict.passed, verdict.words
    assert said[0].startswith("encoder        int8 failed (encoder, level1: off by 1")
    found = read_engines(at).records["encoder"]
    assert found.precision == "fp16" and found.refused.startswith("int8: failed, encoder, level1")
    assert found.fingerprint != found.stands_for
