"""Ray Serve for real: two replicas on this machine, one of them killed under load, and clients that ask again."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pixelrt
import pytest
from pixelrt.goldens.make import make_goldens
from pixelrt_export.export import export_bundle

WAIT_S = 300
PROMPTS = ("Segment the red circle.", "Segment the blue star.", "Segment the red circle and the blue star.")


class Ray:
    def __init__(self, root: Path, python: Path, bundle: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "ray.log"
        path = os.pathsep.join(str(root / name) for name in ("runtime", "kernels"))
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "HOME": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        script = root / "tests" / "scale" / "ray_server.py"
        self.process = subprocess.Popen(
            [str(python), str(script), str(port), str(bundle), "replicas=2"],
            env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("wb"),
        )  # fmt: skip

    def pids(self, ask: bool = True) -> set[int]:
        """The replicas' processes; `ask` false: as it says once it is up."""
        assert self.process.stdin and self.process.stdout
        if ask:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return set(json.loads(line)["pids"])
        raise AssertionError(self.log.read_text()[-3000:])

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    return export_bundle(
        root / "checkpoints" / "pixellm-tiny", tmp_path / "pixellm-tiny", goldens=make_goldens
    )


@pytest.fixture
def ray(root: Path, bundle: Path, tmp_path: Path) -> Iterator[Ray]:
    python = root / ".venv-ray" / "bin" / "python"
    if not python.exists():
        pytest.skip("Ray is not installed: make ray-check installs it into .venv-ray")
    made = Ray(root, python, bundle, tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_replica_killed_under_load(ray: Ray, root: Path, bundle: Path) -> None:
    ask = runpy.run_path(str(root / "examples" / "ask_a_server.py"))["ask"]
    seg = pixelrt.load(bundle)
    pictures = [root / "calib_data" / f"scene_{number:02}.png" for number in (1, 2, 3)]
    truth = [
        (picture.read_bytes(), prompt, [dict(mask.rle()) for mask in seg.segment(picture, prompt).masks])
        for picture in pictures
        for prompt in PROMPTS
    ]
    before = ray.pids(ask=False)
    assert len(before) == 2
    done, over = threading.Semaphore(0), threading.Event()

    def client(number: int) -> list[bool]:
        """Whether each answer was right, until told to stop."""
        right = []
        while not over.is_set():
            picture, prompt, masks = truth[(number + len(right)) % len(truth)]
            answer = ask(ray.url, picture, prompt=prompt)
            right.append([mask["rle"] for mask in answer["masks"]] == masks)
            done.release()
        return right

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            wait(done, 12)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            wait(done, 40)
            end = time.monotonic() + WAIT_S
            while len(ray.pids() - {victim}) < 2:  # Ray starts another in its place
                assert time.monotonic() < end
                time.sleep(0.5)
            wait(done, 12)
        finally:
            over.set()
        right = [answer for each in clients for answer in each.result()]  # raises what a client could not get
    assert len(right) >= 64 and all(right)
    print(f"{len(right)} questions, one of two replicas killed, none lost")

    refusals: list[Any] = [
        (b"hello", {"prompt": "x"}, "400"),
        (truth[0][0], {"task": "interactive", "points": "[[1,"}, "not JSON"),
        (truth[0][0], {}, "neither a prompt nor a task"),
    ]
    for picture, fields, sentence in refusals:
        with pytest.raises(RuntimeError, match=sentence):
            ask(ray.url, picture, **fields)


def wait(done: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert done.acquire(timeout=WAIT_S)


def test_options_are_checked() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed here")
    from pixelrt.serve.ray_app import app

    with pytest.raises(pixelrt.InputError, match="bundle is missing"):
        app({})
    with pytest.raises(pixelrt.InputError, match="no option 'replica'"):
        app({"bundle": "x", "replica": "2"})
