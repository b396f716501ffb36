"""The node in a ROS 2 graph: camera, node and listener in three processes, over DDS on this machine alone."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest

FIRST, SECOND = "Segment the red circle.", "Segment the blue star."
WAIT_S = 300.0  # for anything to happen, on a machine with much else to do
OK, ERROR, STALE = 0, 2, 3
# Reliable instead of best effort, and patience: on a busy machine pictures get lost, and an answer takes seconds.
TIMES = {"timeout_s": 60.0, "stall_s": 5.0}


class Process:
    """A program of the graph; `lines` are those of its stdout, as JSON where they are."""

    def __init__(self, command: Sequence[object], env: dict[str, str], log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
        )
        self.lines: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[", '"')):
                self.lines.put(json.loads(line))

    def give(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def say(self, line: str) -> Any:
        """Give a line, get one."""
        self.give(line)
        return self.next()

    def next(self, timeout_s: float = WAIT_S) -> Any:
        return self.lines.get(timeout=timeout_s)

    def until(self, true: Callable[[Any], bool]) -> list[Any]:
        """Lines up to the first for which `true`."""
        end, seen = time.monotonic() + WAIT_S, []
        while time.monotonic() < end:
            try:
                seen.append(self.next(1.0))
            except queue.Empty:
                continue
            if true(seen[-1]):
                return seen
        raise AssertionError(f"waited {WAIT_S:g} s; heard {seen[-3:]}\n{self.log.read_text()[-2000:]}")

    def end(self, how: int = signal.SIGKILL) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(how)
        return self.process.wait(30)


class Graph:
    """Programs of one ROS domain, all of them on this machine."""

    def __init__(self, root: Path, python: Path, folder: Path, bundle: Path) -> None:
        self.python, self.folder, self.bundle = python, folder, bundle
        self.scripts = root / "tests" / "ros"
        path = os.pathsep.join(str(root / name) for name in ("runtime", "kernels"))
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")])),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_DOMAIN_ID": str(os.getpid() % 100 + 1),
            "ROS_LOG_DIR": str(folder / "log"),
        }
        self.processes: list[Process] = []

    def started(self, name: str, *arguments: object) -> Process:
        log = self.folder / f"{name}-{len(self.processes)}.log"
        self.processes.append(Process([self.python, *arguments], self.env, log))
        return self.processes[-1]

    def node(self, **parameters: object) -> Process:
        values = {
            "bundle": self.bundle,
            "prompt": FIRST,
            "input_qos": "DEFAULT",
            "stall_s": 5.0,
            **parameters,
        }
        # In quotes: parameters are YAML.
        given = [
            part
            for name, value in values.items()
            for part in ("-p", f"{name}:={json.dumps(value if isinstance(value, float) else str(value))}")
        ]
        remapped = ("-r", "image:=/camera/image_raw")
        return self.started("node", "-m", "pixelrt.ros", "--ros-args", *remapped, *given)


def with_rclpy(root: Path) -> Path:
    """The Python of `make ros-check`, or this one where ROS 2 is sourced."""
    python = root / ".venv-ros" / "bin" / "python"
    if python.exists():
        return python
    if importlib.util.find_spec("rclpy"):
        return Path(sys.executable)
    pytest.skip("rclpy is not installed: make ros-check installs it into .venv-ros, or source a ROS 2")


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[Path]:
    return [root / "calib_data" / "scene_01.png", root / "calib_data" / "scene_02.png"]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, pictures: list[Path]) -> dict[str, list[np.ndarray]]:
    """Question -> the label map of each picture, computed in this process."""
    seg = pixelrt.load(tiny_bundle)
    found: dict[str, list[np.ndarray]] = {}
    for prompt in (FIRST, SECOND):
        numbers: dict[str, int] = {}
        found[prompt] = []
        for picture in pictures:
            frame = seg.encode(picture)
            drawn = np.zeros(frame.image.shape[:2], np.uint8)
            for mask in sorted(seg.segment(frame, prompt).masks, key=lambda mask: -mask.area):
                drawn[mask.mask] = numbers.setdefault(mask.label, len(numbers) + 1)
            found[prompt].append(drawn)
    assert found[FIRST][0].any() and not np.array_equal(found[FIRST][0], found[SECOND][0])
    return found


@pytest.fixture
def graph(root: Path, tiny_bundle: Path, tmp_path: Path) -> Iterator[Graph]:
    made = Graph(root, with_rclpy(root), tmp_path, tiny_bundle)
    yield made
    for process in made.processes:
        if process.process.poll() is None:
            process.end()


def is_map(line: Any) -> bool:
    return "data" in line


def pixels(line: Any) -> np.ndarray:
    height, width, step = line["size"]
    assert (line["encoding"], line["frame"], step) == ("mono8", "camera", width)
    return np.frombuffer(zlib.decompress(base64.b64decode(line["data"])), np.uint8).reshape(height, width)


def answers(line: Any, prompt: str, expected: dict[str, list[np.ndarray]]) -> bool:
    """Whether this is the map of the picture its stamp names."""
    maps = expected[prompt]
    return np.array_equal(pixels(line), maps[line["stamp"] % len(maps)])


def check_order(lines: list[Any], expected: dict[str, list[np.ndarray]], prompts: Sequence[str]) -> None:
    """Every map answers one of `prompts`, and none comes twice or late."""
    maps = [line for line in lines if is_map(line)]
    for line in maps:
        assert any(answers(line, prompt, expected) for prompt in prompts), line["stamp"]
    stamps = [line["stamp"] for line in maps]
    assert stamps == sorted(set(stamps))


def test_three_processes(
    graph: Graph, expected: dict[str, list[np.ndarray]], pictures: list[Path], tmp_path: Path
) -> None:
    listener = graph.started("listener", graph.scripts / "ros_listener.py")
    camera = graph.started("camera", graph.scripts / "ros_camera.py", *pictures)
    node = graph.node()
    lines = listener.until(is_map)
    lines += listener.until(lambda line: line.get("level") == OK and "encode ms, median" in line["values"])
    check_order(lines, expected, [FIRST])
    assert camera.say("state") == "active"

    # Another question while it runs; a bad one is refused, and the good one stays.
    assert camera.say(f"prompt {SECOND}") == "published"
    lines = listener.until(
        lambda line: is_map(line) and answers(line, SECOND, expected) and line["stamp"] % 2 == 0
    )
    check_order(lines, expected, [FIRST, SECOND])
    (reason,) = camera.say("set prompt  ")
    assert "the question is empty" in reason
    (reason,) = camera.say("set output_qos SENSOR_DATA")
    assert "is read when the node is configured" in reason
    check_order(listener.until(is_map) + listener.until(is_map), expected, [SECOND])

    # A bundle that is none: the old one goes on, and diagnostics say so.
    assert camera.say(f"set bundle {tmp_path}") == [""]
    lines = listener.until(lambda line: "was not changed" in line.get("message", ""))
    lines += listener.until(is_map) + listener.until(is_map)
    check_order(lines, expected, [SECOND])

    # Another bundle takes over between two pictures.
    other = shutil.copytree(graph.bundle, tmp_path / "other")
    assert camera.say(f"set bundle {other}") == [""]
    lines = listener.until(
        lambda line: line.get("values", {}).get("bundle") == str(other) and line["level"] == OK
    )
    check_order(lines + listener.until(is_map), expected, [SECOND])

    # An overlay is drawn from when somebody listens.
    assert lines[-1]["values"]["overlays"] == "0"
    listener.give("overlay")
    shown = listener.until(lambda line: "overlay" in line)[-1]
    height, width = expected[SECOND][shown["overlay"] % 2].shape
    assert (shown["encoding"], shown["size"]) == ("rgb8", [height, width, 3 * width])

    # Deactivated it is silent, active again it answers.
    assert camera.say("transition 4") == [True] and camera.say("state") == "inactive"
    listener.until(lambda line: line.get("level") == STALE)
    assert not any(is_map(line) for line in listener.until(lambda line: line.get("level") == STALE))
    assert camera.say("transition 3") == [True] and camera.say("state") == "active"
    check_order(listener.until(is_map), expected, [SECOND])

    # The camera stalls: ERROR until it is back, and no map but of a picture that came.
    camera.process.send_signal(signal.SIGSTOP)
    listener.until(lambda line: line.get("level") == ERROR and "no image for" in line["message"])
    heard = [listener.next() for _ in range(3)]
    assert all(line.get("level", ERROR) == ERROR for line in heard)
    check_order(heard, expected, [SECOND])
    camera.process.send_signal(signal.SIGCONT)
    check_order(listener.until(is_map), expected, [SECOND])

    # Killed and started again: it answers as at first.
    node.end(signal.SIGKILL)
    with contextlib.suppress(queue.Empty):  # what it had said
        while True:
            listener.next(3.0)
    node = graph.node()
    check_order(listener.until(is_map) + listener.until(is_map), expected, [FIRST])
    assert node.end(signal.SIGINT) == 0
    said = node.log.read_text()
    assert "Traceback" not in said and said.count("vision_msgs is not installed") <= 1


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"bundle": "/nowhere"}, "/nowhere does not exist"),
        ({"input_qos": "FAST"}, "QoS 'FAST'"),
        ({"prompt": "x" * 100_000}, "prompt"),
    ],
)
def test_bad_parameters_end_it_with_a_sentence(
    graph: Graph, parameters: dict[str, object], says: str
) -> None:
    node = graph.node(**parameters)
    assert node.process.wait(WAIT_S) == 2
    said = node.log.read_text()
    assert says in said and "Traceback" not in said
