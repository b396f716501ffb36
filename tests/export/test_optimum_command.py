"""`optimum-cli export pixelrt` is found by optimum itself and calls the exporter."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli", reason="needs the export extra")
COMMAND = ["optimum-cli", "export", "pixelrt", "IN", "OUT"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of each call of the exporter, which is a stand-in here."""
    from pixelrt.errors import InputError

    made: list[tuple[Any, ...]] = []

    def export_bundle(*args: Any, **options: Any) -> None:
        assert options.pop("goldens").__name__ == "make_goldens"
        made.append((*args, options))
        if options["precision"] == "int3":
            raise InputError("int3 is no precision")

    stand_in = ModuleType("pixelrt_export.export")
    stand_in.export_bundle = export_bundle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pixelrt_export.export", stand_in)
    return made


def test_the_command_calls_the_exporter(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*COMMAND, "--precision", "fp16", "--vision-tower", "CLIP"])
    optimum_cli.main()
    assert calls == [(Path("IN"), Path("OUT"), {"precision": "fp16", "vision_tower": Path("CLIP")})]


def test_defaults(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", COMMAND)
    optimum_cli.main()
    assert calls == [(Path("IN"), Path("OUT"), {"precision": "fp32", "vision_tower": None})]


def test_bad_input_is_one_sentence(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*COMMAND, "--precision", "int3"])
    with pytest.raises(SystemExit) as caught:
        optimum_cli.main()
    assert caught.value.code == 2 and calls
    assert capsys.readouterr().err == "error: int3 is no precision\n"


def test_the_namespace_stays_open() -> None:
    """An __init__.py of ours would hide optimum's own modules."""
    root = Path(__file__).resolve().parents[2] / "export" / "optimum"
    assert not list(root.rglob("__init__.py"))
    assert [path.name for path in root.rglob("*.py")] == ["register_pixelrt.py"]
