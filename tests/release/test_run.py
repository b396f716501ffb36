"""`pixelrt run` and `./build_engines.sh`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pixelrt.cli import main
from pixelrt.cli.run import made_from

installed = pytest.mark.skipif(
    not entry_points(group="pixelrt.commands", name="export"),
    reason="pixelrt is not installed in this environment; make test installs it",
)


def pixelrt_run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_a_bundle_answers_the_sample_question(tiny_bundle: Path, tmp_path: Path) -> None:
    done = pixelrt_run(tiny_bundle, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for said in ("scene_01.png", "Segment the red circle and the blue star.", "encode", "overlay:", "next:"):
        assert said in done.output
    answer = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert (tmp_path / "out" / answer["overlay"]).is_file()


def test_a_psalm_bundle_does_its_task(psalm_bundle: Path, root: Path, tmp_path: Path) -> None:
    task = ("--task", "panoptic", "--classes", root / "calib_data" / "classes.txt")
    done = pixelrt_run(psalm_bundle, *task, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for said in ("scene_01.png", "panoptic, 30 classes: red circle", "encode", "overlay:", "next:"):
        assert said in done.output
    assert (tmp_path / "out" / "panoptic.png").is_file()


@installed
def test_a_checkpoint_is_exported_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle, where = tmp_path / "bundle", ("--out", tmp_path / "out")
    first = pixelrt_run(tiny_checkpoint, "--bundle", bundle, *where)
    assert first.exit_code == 0, first.output
    made = (bundle / "manifest.json").stat().st_mtime_ns
    again = pixelrt_run(tiny_checkpoint, "--bundle", bundle, *where)
    assert again.exit_code == 0 and "used again" in again.output
    assert (bundle / "manifest.json").stat().st_mtime_ns == made
    half = pixelrt_run(tiny_checkpoint, "--bundle", bundle, "--precision", "fp16", *where)
    assert half.exit_code == 0 and "used again" not in half.output
    assert set(json.loads((bundle / "manifest.json").read_text())["precision"].values()) == {"fp16"}


def test_a_changed_checkpoint_is_noticed(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    assert made_from(tiny_bundle, copy, None, None)
    assert not made_from(tiny_bundle, copy, None, "fp16")
    assert not made_from(tmp_path / "nowhere", copy, None, None)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not made_from(tiny_bundle, copy, None, None)
    shutil.copyfile(tiny_checkpoint / "model.safetensors", weights)
    assert made_from(tiny_bundle, copy, None, None)
    (copy / "clip" / "config.json").write_text("{}")
    assert not made_from(tiny_bundle, copy, None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-folder"], "not a folder"),
        (["no-such-folder", "--image", "x.png"], "--prompt"),
        (["no-such-folder", "--task", "panoptic"], "--classes"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str) -> None:
    done = pixelrt_run(*arguments)
    assert done.exit_code == 2
    assert said in done.output and "Traceback" not in done.output


def script(root: Path, *arguments: object, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(root / "build_engines.sh"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )


def test_the_script_prints_its_header(root: Path, tmp_path: Path) -> None:
    done = script(root, "-h", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("From a checkpoint or a bundle") and "PIXELRT_VENV" in done.stdout
    assert "set -euo" not in done.stdout and "#" not in done.stdout


def test_the_script_names_a_python_that_will_not_do(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    (copy / "scripts").mkdir(parents=True)
    for name in ("build_engines.sh", "scripts/venv.sh", "pyproject.toml"):
        shutil.copy(root / name, copy / name)
    done = script(copy, cwd=tmp_path, PIXELRT_PYTHON="/bin/false")
    assert done.returncode == 1
    assert done.stderr == (
        "error: /bin/false is not Python 3.10 to 3.13. Install one of them, or name it: "
        "PIXELRT_PYTHON=/path/to/python3.12\n"
    )


def test_the_script_says_when_pip_fails(root: Path, tmp_path: Path) -> None:
    clone, bundle = tmp_path / "clone", tmp_path / "bundle"
    shutil.copytree(root / "scripts", clone / "scripts")
    for name in ("build_engines.sh", "pyproject.toml"):
        shutil.copy(root / name, clone / name)
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    done = script(clone, bundle, cwd=tmp_path, PIXELRT_PYTHON=sys.executable, PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: pip could not install pixelrt[cpu]")
    assert not list((clone / ".venv").glob("*.stamp"))


@pytest.mark.slow
def test_the_script_makes_its_environment(root: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """From nothing, in a folder with blanks, called from elsewhere; a bundle needs no torch. Asks pip."""
    clone = tmp_path / "a clone with blanks"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "tests", "bundles", "checkpoints")
    shutil.copytree(root, clone, ignore=skipped)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    done = script(clone, tiny_bundle, cwd=outside, PIXELRT_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "overlay: pixelrt-out/overlay.png" in done.stdout
    assert (outside / "pixelrt-out" / "overlay.png").is_file()
    python = clone / ".venv" / "bin" / "python"
    torch = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert torch.returncode != 0
    again = script(clone, tiny_bundle, cwd=outside, PIP_NO_INDEX="1", PIXELRT_PYTHON="/bin/false")
    assert again.returncode == 0 and "Installing" not in again.stdout
