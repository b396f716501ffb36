"""The README's commands and Python work as they stand, in a copy of the checkout.

Blocks marked `sh` are run, then those marked `python`; `text` blocks need files that are not here. The `make`
lines are what runs this test, so they are compared with .ci/run. The copy uses the environment of the test
run (PIXELRT_VENV); test_run.py shows that the script can make its own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "tests", "bundles", "build", "pixelrt-out")


def blocks(root: Path) -> list[tuple[str, str]]:
    return BLOCK.findall((root / "README.md").read_text(encoding="utf-8"))


def commands(root: Path) -> list[str]:
    return [line for kind, body in blocks(root) if kind == "sh" for line in body.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def copy(root: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not entry_points(group="pixelrt.commands", name="export"):
        pytest.skip("pixelrt is not installed in this environment; make test installs it")
    folder = tmp_path_factory.mktemp("readme") / "pixelrt"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(copy: Path, command: list[str]) -> str:
    path = os.pathsep.join(str(copy / source) for source in ("runtime", "export", "kernels"))
    settings = {**os.environ, "PYTHONPATH": path, "PIXELRT_VENV": ".venv"}
    done = subprocess.run(command, cwd=copy, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_and_the_python(root: Path, copy: Path) -> None:
    for command in commands(root):
        if not command.startswith("make "):
            run(copy, ["bash", "-euo", "pipefail", "-c", command])
    for name in ("answer.json", "overlay.png"):
        assert (copy / "pixelrt-out" / name).is_file()
    snippets = [body for kind, body in blocks(root) if kind == "python"]
    assert snippets
    for body in snippets:
        run(copy, [str(copy / ".venv" / "bin" / "python"), "-c", body])


def test_the_commands_printed_last_work(copy: Path) -> None:
    printed = run(copy, ["./build_engines.sh"])
    following = [
        line.removeprefix("next:").strip() for line in printed.splitlines() if line.startswith("next:")
    ]
    for command, name in zip(following, ("pixellm-tiny", "psalm-tiny"), strict=True):
        assert command.startswith(f"pixelrt segment bundles/{name}")
        run(copy, ["bash", "-euo", "pipefail", "-c", f"PATH=$PWD/.venv/bin:$PATH; {command}"])


def test_the_make_commands_are_what_ci_runs(root: Path) -> None:
    made = [command for command in commands(root) if command.startswith("make ")]
    assert made == ["make test", "make check"]
    ci = (root / ".ci" / "run").read_text(encoding="utf-8")
    assert all(re.search(rf"^{command}\b", ci, re.MULTILINE) for command in made)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "DESIGN.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/bundle.md",
        "docs/triton.md",
        "docs/jetson.md",
        "docs/video.md",
    ],
)
def test_links_lead_somewhere(root: Path, name: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text) if "://" not in link]
    missing = [link for link in links if not ((root / name).parent / link).exists()]
    assert not missing
