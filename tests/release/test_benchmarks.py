"""The benchmarks are not run by tests; that what they import is still there is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NEEDS_GPU_LIBRARIES = {"cupy_device"}


@pytest.mark.parametrize(
    "name",
    sorted(f.stem for f in FOLDER.glob("*.py") if f.stem not in NEEDS_GPU_LIBRARIES)
    + sorted(f"peers.{f.stem}" for f in FOLDER.glob("peers/*.py")),
)
def test_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra export)")
    monkeypatch.syspath_prepend(str(FOLDER.parent))  # as `python -m benchmarks.NAME`
    monkeypatch.syspath_prepend(str(FOLDER))  # as `python benchmarks/NAME.py`
    importlib.import_module(f"benchmarks.{name}")
    assert f"benchmarks.{name}" in sys.modules
