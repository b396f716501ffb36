"""Checkpoints of the golden runs and the kernels' host library, made once a session."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pixelrt_kernels import build
from pixelrt_kernels.library import HOST, HostLibrary

GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    """The kernels' host library, built anew."""
    if build.compiler(HOST) is None:
        pytest.skip("no C++ compiler: the host library cannot be built")
    return HostLibrary(build.build(HOST, tmp_path_factory.mktemp("kernels")))


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that runs the GPU kernels on the CPU; see tests/kernels/emulation."""
    compiler = build.compiler(HOST)
    if compiler is None:
        pytest.skip("no C++ compiler: the kernels cannot be emulated")
    made: Callable[..., Path] = runpy.run_path(str(GOLDEN.parent / "kernels" / "emulation" / "device.py"))[
        "compiled"
    ]
    return made(compiler, tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def golden_pixellm() -> Path:
    """What the original PixelLM computed with tiny weights; see the README there."""
    return GOLDEN / "pixellm"


@pytest.fixture(scope="session")
def golden_checkpoint_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released-layout PixelLM folder, CLIP beside it, whose answers never end (cases two_targets, zero)."""
    return _golden_checkpoint(tmp_path_factory, "A")


@pytest.fixture(scope="session")
def golden_checkpoint_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the head that stops after one target (case one_target_eos)."""
    return _golden_checkpoint(tmp_path_factory, "B")


def _golden_checkpoint(tmp_path_factory: pytest.TempPathFactory, head: str) -> Path:
    pytest.importorskip("ml_dtypes", reason="needs the export extra")
    pytest.importorskip("safetensors", reason="needs the export extra")
    write_checkpoint = runpy.run_path(str(GOLDEN / "pixellm" / "make_checkpoint.py"))["write_checkpoint"]
    folder: Path = write_checkpoint(tmp_path_factory.mktemp(f"golden_{head}"), head)
    return folder


@pytest.fixture(scope="session")
def golden_bundle_a(golden_checkpoint_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of golden_checkpoint_a."""
    return _export(golden_checkpoint_a, tmp_path_factory.mktemp("bundles") / "golden_a")


@pytest.fixture(scope="session")
def golden_bundle_b(golden_checkpoint_b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of golden_checkpoint_b."""
    return _export(golden_checkpoint_b, tmp_path_factory.mktemp("bundles") / "golden_b")


@pytest.fixture(scope="session")
def golden_psalm() -> Path:
    """What the original PSALM computed with tiny weights; see the README there."""
    return GOLDEN / "psalm"


@pytest.fixture(scope="session")
def golden_psalm_case(golden_psalm: Path) -> Callable[[str], dict[str, Any]]:
    """Name of a case -> its tensors."""
    load_case: Callable[[str], dict[str, Any]] = runpy.run_path(str(golden_psalm / "cases.py"))["load_case"]
    return load_case


@pytest.fixture(scope="session")
def golden_psalm_checkpoint(golden_psalm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released-layout PSALM folder, the eight stale tensors of the published file among its weights."""
    pytest.importorskip("safetensors", reason="needs the export extra")
    write_checkpoint = runpy.run_path(str(golden_psalm / "make_checkpoint.py"))["write_checkpoint"]
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("golden_psalm") / "psalm", stale=True)
    return folder


@pytest.fixture(scope="session")
def golden_psalm_bundle(golden_psalm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of golden_psalm_checkpoint."""
    return _export(golden_psalm_checkpoint, tmp_path_factory.mktemp("bundles") / "golden_psalm")


@pytest.fixture(scope="session")
def golden_psalm_fp16_bundle(golden_psalm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights stored in fp16."""
    return _export(golden_psalm_checkpoint, tmp_path_factory.mktemp("bundles") / "golden_psalm_fp16", "fp16")


def _export(checkpoint: Path, bundle: Path, precision: str = "fp32") -> Path:
    from pixelrt_export.export import export_bundle

    return export_bundle(checkpoint, bundle, precision=precision)
