"""Which backend is taken, and what is said where it cannot be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pixelrt
import pytest
from pixelrt import backends
from pixelrt.errors import InputError, MissingExtra

from tests.doubles.bundle import Doubles, with_engines


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu_is_there", lambda: True)


def test_auto_takes_tensorrt(doubles: Doubles, built: Path, there: None) -> None:
    assert pixelrt.load(built).backend == "TensorRT 10.16.1 on a test double (sm_87)"


def test_auto_without_a_gpu_is_silent(doubles: Doubles, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu_is_there", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixelrt.load(built).backend == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "sm_90"}, "built for sm_90; this GPU is sm_87. Run here: pixelrt build "),
        ({"version": "10.3.0"}, "built by tensorrt 10.3.0; 10.16.1 is installed here"),
        ({"sha256": "0" * 64}, "was altered"),
        ({"stands_for": "0" * 64}, "another export"),
    ],
)
def test_auto_falls_through_with_what_mends_it(
    changes: dict[str, Any],
    sentence: str,
    doubles: Doubles,
    small: Path,
    tmp_path: Path,
    there: None,
) -> None:
    folder = with_engines(small, tmp_path / "b", **changes)
    with pytest.warns(pixelrt.errors.PixelrtWarning) as caught:
        assert pixelrt.load(folder).backend == "onnxruntime-cpu"
    assert [sentence in str(warning.message) for warning in caught] == [True]
    assert "pixelrt build" in str(caught[0].message)
    with pytest.raises(InputError, match=sentence[:20]):
        pixelrt.load(folder, backend="tensorrt")
    assert not doubles.trt.engines  # none of them was deserialised


def test_an_engine_that_tensorrt_refuses(doubles: Doubles, small: Path, tmp_path: Path) -> None:
    import hashlib

    folder = with_engines(small, tmp_path / "b", bytes=5, sha256=hashlib.sha256(b"noise").hexdigest())
    for file in folder.glob("engines/*/*.engine"):
        file.write_bytes(b"noise")
    with pytest.raises(InputError, match=r"cannot load .*: the magic tag does not match. Run here: pixelrt"):
        pixelrt.load(folder, backend="tensorrt")


def test_named_backends_that_are_not_there(small: Path) -> None:
    with pytest.raises(InputError, match=r"No backend 'gpu'. Choose one of: auto, tensorrt, tensorrt-rtx"):
        pixelrt.load(small, backend="gpu")
    with pytest.raises(InputError, match=r"has no CUDA\. Run: pip"):
        pixelrt.load(small, backend="onnxruntime-cuda")


def test_a_bundle_without_engines(doubles: Doubles, small: Path, there: None) -> None:
    with pytest.raises(InputError, match=r"has no engines\. Run here: pixelrt build"):
        pixelrt.load(small, backend="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixelrt.load(small).backend == "onnxruntime-cpu"


def test_pycuda_that_is_not_installed(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pycuda", None)
    for name in ("pycuda.driver", "pixelrt.cuda", "pixelrt.engine_trt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtra, match=r"pycuda is not installed. Run: pip install 'pixelrt\[cuda\]'"):
        pixelrt.load(built, backend="tensorrt")


def test_the_record_survives_the_list(built: Path) -> None:
    """The doubles' engines are read from the same file as real ones."""
    document = json.loads(next(built.glob("engines/*/engines.json")).read_text())
    assert document["engines"]["language"]["cache_length"] == 512
