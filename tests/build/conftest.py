"""The builder's double in TensorRT's place, and a GPU that is not there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixelrt.build import builder
from pixelrt.build.process import Outcome, Tell
from pixelrt.build.worker import Job, run
from pixelrt.gpu import Gpu
from pixelrt.tensorrt import open_library

DOUBLE = Path(__file__).resolve().parent / "double"
ORIN = Gpu("Orin", "sm_87", 8 << 30, True, "12.6")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`import tensorrt` gives the double, here and in the builder's processes; the GPU is an Orin."""
    monkeypatch.syspath_prepend(DOUBLE)
    monkeypatch.setattr(builder, "find_gpu", lambda: ORIN)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield monkeypatch
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def here(double: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The double, and the builder in this process: the same code without a process for each graph."""

    def run_job(job: Job, tell: Tell) -> Outcome:
        said: list[dict[str, Any]] = []
        last = run(job, open_library(job.flavour), said.append)
        return Outcome(last.get("done"), last.get("refused", []), [m["log"] for m in said if "log" in m])

    double.setattr(builder, "run_job", run_job)
    return double


@pytest.fixture(scope="session")
def fp16_bundle(golden_checkpoint_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pixelrt_export.export import export_bundle

    return export_bundle(golden_checkpoint_a, tmp_path_factory.mktemp("bundles") / "fp16", precision="fp16")


@pytest.fixture
def bundle(fp16_bundle: Path, tmp_path: Path) -> Path:
    """A copy that engines may be built in."""
    return Path(shutil.copytree(fp16_bundle, tmp_path / "bundle"))
