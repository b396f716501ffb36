"""Errors a user sees."""

from __future__ import annotations

from pixelrt.errors import InputError, MissingExtra


def test_missing_extra_ends_with_the_pip_line() -> None:
    error = MissingExtra("onnxruntime", "cpu")
    assert isinstance(error, InputError) and isinstance(error, ValueError)
    assert str(error).endswith("pip install 'pixelrt[cpu]'")


def test_extra_is_found_from_the_failed_import() -> None:
    found = MissingExtra.from_import(ModuleNotFoundError("No module", name="torch.nn"))
    assert found is not None and found.extra == "export" and "torch" in str(found)
    assert MissingExtra.from_import(ModuleNotFoundError("No module", name="pixelrt.nothing")) is None
    assert MissingExtra.from_import(ModuleNotFoundError("No module")) is None
