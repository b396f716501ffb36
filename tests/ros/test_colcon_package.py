"""ros2/pixelrt_ros: what colcon reads fits together, and the program answers. `launch` itself is not installed here."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from pixelrt.ros.parameters import PARAMETERS

PACKAGE = Path(__file__).resolve().parents[2] / "ros2" / "pixelrt_ros"
ROOT = PACKAGE.parents[1]
NODE = ROOT / "runtime" / "pixelrt" / "ros" / "node.py"


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    import setuptools

    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(PACKAGE)
    runpy.run_path(str(PACKAGE / "setup.py"))
    return given


def test_package_and_setup_agree(setup_arguments: dict[str, Any]) -> None:
    tree = ElementTree.parse(PACKAGE / "package.xml").getroot()
    name = tree.findtext("name")
    assert name == setup_arguments["name"] == PACKAGE.name
    assert tree.findtext("version") == setup_arguments["version"]
    assert tree.findtext("export/build_type") == "ament_python"
    files = [file for _, group in setup_arguments["data_files"] for file in group]
    assert all((PACKAGE / file).is_file() for file in files)
    assert {"launch/segment.launch.py", "config/segment.yaml", f"resource/{name}"} <= set(files)
    assert f"$base/lib/{name}" in (PACKAGE / "setup.cfg").read_text()
    assert setup_arguments["entry_points"]["console_scripts"] == [f"segment = {name}.segment:main"]


def test_what_the_node_imports_is_named() -> None:
    tree = ElementTree.parse(PACKAGE / "package.xml").getroot()
    named = {entry.text for entry in tree.findall("exec_depend")}
    text = NODE.read_text()
    used = set(re.findall(r"^(?:from|import) (\w+_msgs|rclpy|rcl_interfaces)\b", text, re.MULTILINE))
    assert used and used <= named and "vision_msgs" in named


def test_the_parameter_file_and_the_page_name_every_parameter() -> None:
    known = PARAMETERS
    lines = re.findall(r"^    (\w+): (.*)$", (PACKAGE / "config" / "segment.yaml").read_text(), re.MULTILINE)
    assert {name for name, _ in lines} == set(known) - {"bundle", "prompt", "classes", "things"}
    for name, value in lines:
        default = known[name]
        assert value == (json.dumps(default) if default in ("", True, False) else str(default)), name
    page = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    assert not [name for name in known if f"`{name}`" not in page]


def test_without_ros_it_says_what_to_do() -> None:
    path = os.pathsep.join(str(folder) for folder in (PACKAGE, ROOT / "runtime", ROOT / "kernels"))
    for program, says in (
        (
            "import sys; sys.modules['rclpy'] = sys.modules['diagnostic_msgs'] = None",
            "source /opt/ros/DISTRO/setup.bash",
        ),
        ("import sys; sys.modules['pixelrt'] = None", "pip install 'pixelrt[cpu]'"),
    ):
        command = f"{program}; from pixelrt_ros.segment import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
