"""pixellm-tiny with engines, over test doubles of PyCUDA and TensorRT (tests/doubles): no GPU, no TensorRT.

The doubles check every address, shape, profile and the order of all work. What they cannot show is listed in
docs/tensorrt.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend

from tests.doubles.bundle import Doubles, installed, with_engines

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "pixellm-tiny"


@pytest.fixture
def doubles() -> Iterator[Doubles]:
    with installed() as found:
        yield found


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pixellm-tiny, whose pictures are small, exported."""
    pytest.importorskip("safetensors", reason="needs the export extra")
    from pixelrt_export.export import export_bundle

    return export_bundle(CHECKPOINT, tmp_path_factory.mktemp("bundles") / "pixellm-tiny")


@pytest.fixture(scope="session")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_engines(small, tmp_path_factory.mktemp("engines") / "pixellm-tiny")


@pytest.fixture
def backend(doubles: Doubles, built: Path) -> Any:
    from pixelrt.engine_trt import TrtBackend

    return TrtBackend(Bundle.read(built, verify=False))


@pytest.fixture
def reference(built: Path) -> OrtBackend:
    return OrtBackend(Bundle.read(built, verify=False), compatible=False)
