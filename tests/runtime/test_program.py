"""The program around its commands: joined commands, missing extras, inspect, what starting imports."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pixelrt.cli
import pytest
from click.testing import CliRunner, Result
from pixelrt.cli import main
from pixelrt.errors import PixelrtWarning


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def with_entry_points(monkeypatch: pytest.MonkeyPatch, **commands: Any) -> None:
    """Pretend that packages registered these commands; an exception is raised when one is loaded."""

    def load(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    def entry_points(group: str, name: str | None = None) -> list[Any]:
        assert group == "pixelrt.commands"
        chosen = [key for key in commands if name in (None, key)]
        return [SimpleNamespace(name=key, load=lambda key=key: load(commands[key])) for key in chosen]

    monkeypatch.setattr(pixelrt.cli, "entry_points", entry_points)


@click.command()
@click.argument("words", nargs=-1)
def joined(words: tuple[str, ...]) -> None:
    """Says what it was given."""
    click.echo(" ".join(words))


def test_commands_of_other_packages_join(monkeypatch: pytest.MonkeyPatch) -> None:
    with_entry_points(monkeypatch, export=joined, shout=joined)
    assert run("export", "a", "b").output == "a b\n"
    assert "shout" in run("--help").output


@click.command()
def warns() -> None:
    """Two warnings, of ours and of a library."""
    warnings.warn("half as fast. Run: pixelrt build B", PixelrtWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="of a library"):
        warnings.warn("of a library", stacklevel=1)


def test_our_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_entry_points(monkeypatch, export=warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("export").output == "warning: half as fast. Run: pixelrt build B\n"


def test_export_has_debug_and_a_next_line_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pixelrt_export.cli import export

    bundle = tmp_path / "my bundle"

    def export_bundle(checkpoint: Path, target: Path, **_: object) -> Path:
        if checkpoint.name == "broken":
            raise RuntimeError("it broke")
        target.mkdir()
        return target

    with_entry_points(monkeypatch, export=export)
    monkeypatch.setattr("pixelrt_export.export.export_bundle", export_bundle)
    done = run("export", "checkpoint", bundle)
    command = shlex.split(done.output.partition("next: ")[2])
    assert command == ["pixelrt", "segment", str(bundle), "IMAGE", "Segment the ..."]
    failed = run("export", "broken", bundle)
    assert failed.exit_code == 1 and "--debug" in failed.output and "Traceback" not in failed.output
    failed = run("export", "broken", bundle, "--debug")
    assert failed.exit_code == 1 and "Traceback" in failed.output and "in export_bundle" in failed.output


def test_absent_export_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with_entry_points(monkeypatch)
    result = run("export", "a", "b")
    assert result.exit_code == 2 and result.output.endswith("pip install 'pixelrt[export]'\n")
    with_entry_points(monkeypatch, export=ModuleNotFoundError("No module named 'torch'", name="torch"))
    result = run("export", "a", "b")
    assert result.exit_code == 2 and result.output.endswith("pip install 'pixelrt[export]'\n")
    assert run("--help").exit_code == 0  # which loads none of them


def test_entry_points_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with_entry_points(monkeypatch, export=print, shout=ModuleNotFoundError("No module named 'x'", name="x"))
    for command in ("export", "shout"):
        result = run(command)
        assert result.exit_code == 1 and result.output.startswith("failed: ")


def test_unknown_command_and_version() -> None:
    assert run("segmnt").exit_code == 2
    assert run("--version").output.startswith("pixelrt ")


MANIFEST = {
    "format": 1,
    "family": "pixellm",
    "name": "toy",
    "license": "Apache-2.0",
    "precision": {"encoder": "fp16", "language": "int4", "pixel_decoder": "fp32"},
    "image": {"size": 140, "patch": 14},
    "provenance": {"checkpoint": "toy-checkpoint", "files": {"model.bin": "cd" * 32}},
    "graphs": {
        "encoder": {
            "opset": 20,
            "inputs": [{"name": "pixels", "dtype": "float32", "shape": [1, 3, 140, 140]}],
            "outputs": [
                {"name": "image_tokens", "dtype": "activations", "shape": [1, "tokens", 128]},
                *({"name": f"past.{n}.key", "dtype": "activations", "shape": [1, 4]} for n in range(32)),
            ],
            "files": [{"file": "encoder.fp32.onnx", "activations": "float32"}],
        }
    },
    "files": {
        "encoder.fp32.onnx": {"bytes": 999, "sha256": "12" * 32},
        "weights.data": {"bytes": 13_753_000_000, "sha256": "34" * 32},
    },
}


def test_inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrt.bundle import Bundle

    read = SimpleNamespace(path=tmp_path, sha256="ef" * 32, manifest=MANIFEST)
    monkeypatch.setattr(Bundle, "read", lambda path, progress: read)
    result = run("inspect", tmp_path)
    assert result.exit_code == 0, result.output
    wanted = "toy: pixellm|language int4|Apache-2.0|[1, tokens, 128]|encoder.fp32.onnx|999 B|13.8 GB|121212"
    assert result.output.count("past.") == 1 and "past.0…31.key" in result.output
    for words in [*wanted.split("|"), "toy-checkpoint", "cdcd", "efef", "next: "]:
        assert words in result.output
    document = json.loads(run("inspect", tmp_path, "--json").output)
    assert document == {"path": str(tmp_path), "sha256": "ef" * 32, "manifest": MANIFEST}
    read.path = Path("odd\udcff")  # a byte that is not UTF-8
    assert json.loads(run("inspect", "odd\udcff", "--json").output)["path"] == "odd\ufffd"
    assert "odd\ufffd" in run("inspect", "odd\udcff").output


def test_inspect_no_bundle(tmp_path: Path) -> None:
    result = run("inspect", tmp_path)
    assert result.exit_code == 2 and result.output.startswith("error: ")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the same modules as this one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    "code",
    ["import pixelrt", "from pixelrt.cli import main; main(['--help'], standalone_mode=False)"],
)
def test_starting_imports_nothing_heavy(code: str) -> None:
    code += "\nimport sys; print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = python("-c", code)
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "pixelrt" in loaded
    assert not {"PIL", "onnxruntime", "tokenizers", "torch", "transformers", "onnx"} & set(loaded)


def test_module_is_the_program() -> None:
    done = python("-m", "pixelrt.cli", "inspect")
    assert done.returncode == 2 and "Usage: pixelrt inspect" in done.stderr
