"""A real tritonserver (nvidia-pytriton's) loads what `pixelrt triton` writes, and real clients ask it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt import query_json, rle
from pixelrt.goldens.make import make_goldens
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.triton.repository import Wish, write_repository
from pixelrt_export.export import export_bundle

WAIT_S = 300  # for anything, on a machine with much else to do
QUESTIONS = {
    "pixellm": ["Segment the red circle and the blue star.", "Segment the striped shapes."],
    "psalm": [Refer("the blue star"), Classes(["red circle", "blue star"]), Regions(points=[(72, 100)])],
}


class Installed:
    """nvidia-pytriton in `make triton-check`'s environment, its backend put together as tritonserver wants it."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python = python
        told = "import sysconfig as s; print(s.get_path('purelib'), s.get_config_var('LIBDIR'), s.get_python_version())"
        site, libraries, version = subprocess.run(
            [str(python), "-c", told], capture_output=True, text=True, check=True
        ).stdout.split()
        server = Path(site) / "pytriton" / "tritonserver"
        if not server.is_dir():
            pytest.skip(f"nvidia-pytriton is not installed for {python}: make triton-check installs it")
        self.program, self.backends = server / "bin" / "tritonserver", folder / "backends"
        shutil.copytree(server / "backends", self.backends, ignore=shutil.ignore_patterns("__pycache__"))
        stub = self.backends / "python" / "triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
        # The stub finds its Python by PATH, and libpython by the loader.
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": os.pathsep.join([str(Path(site) / "nvidia_pytriton.libs"), libraries]),
        }
        linked = subprocess.run(["ldd", str(stub)], env=self.env, capture_output=True, text=True, check=False)
        if "not found" in linked.stdout:
            missing = [line.split()[0] for line in linked.stdout.splitlines() if "not found" in line]
            pytest.skip(
                f"Triton's Python backend lacks {', '.join(missing)}. On Debian: apt install libpython{version}"
            )


class Triton:
    def __init__(self, installed: Installed, repository: Path, models: list[str], log: Path) -> None:
        self.installed, self.repository, self.log = installed, repository, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        loads = [f"--load-model={model}" for model in reversed(models)]
        command = [
            installed.program, f"--model-repository={repository}", f"--backend-directory={installed.backends}",
            f"--backend-config=python,stub-timeout-seconds={WAIT_S}", "--model-control-mode=explicit", *loads,
            "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
            "--exit-timeout-secs=1",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=installed.env,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        end = time.monotonic() + WAIT_S
        while self.code("/v2/health/ready") != 200:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def code(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=WAIT_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def probe(self, *options: str) -> tuple[int, str]:
        command = [sys.executable, str(self.repository / "probe.py"), "--url", f"http://{self.address}"]
        done = subprocess.run(
            [*command, "--timeout", str(WAIT_S), *options], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def ask(self, pictures: list[Path], queries: list[Any], out: Path) -> list[tuple[Any, np.ndarray]]:
        """Answer and masks of each question, all asked at once."""
        script = Path(__file__).parents[1] / "scale" / "triton_client.py"
        asked = {"pictures": [str(path) for path in pictures], "queries": queries}
        command = [self.installed.python, script, self.repository, self.address, out]
        done = subprocess.run(
            [str(part) for part in command],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = np.load(out)
        return [(json.loads(str(found[f"answer.{n}"])), found[f"masks.{n}"]) for n in range(len(queries))]

    def kill_stub(self, model: str) -> None:
        """The process of a Python model."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                line = stat.with_name("cmdline").read_bytes().split(b"\0")
                if parent == self.process.pid and f"{self.repository}/{model}/1/model.py".encode() in line:
                    os.kill(int(stat.parent.name), signal.SIGKILL)
                    return
        raise AssertionError(f"{model} has no process")

    def end(self) -> None:
        if self.process.poll() is None:  # it removes its shared memory, after waiting for models that died
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    python = root / ".venv-triton" / "bin" / "python"
    if not python.exists():
        pytest.skip("tritonserver is not installed: make triton-check installs it into .venv-triton")
    return Installed(python, tmp_path_factory.mktemp("server"))


@pytest.fixture(params=[("pixellm", "models"), ("psalm", "models"), ("pixellm", "in-process")], ids="-".join)
def case(request: pytest.FixtureRequest, installed: Installed, root: Path, tmp_path: Path) -> Iterator[Any]:
    """(family, bundle, server)"""
    family, leaves = request.param
    checkpoint = root / "checkpoints" / f"{family}-tiny"
    bundle = export_bundle(checkpoint, tmp_path / checkpoint.name, goldens=make_goldens)
    wish = Wish(bundle.name, leaves="none" if leaves == "in-process" else "onnxruntime")
    repository = tmp_path / "models"
    write_repository(bundle, repository, wish)
    for leaf in wish.models[1:]:  # this server has no ONNX Runtime backend
        config = repository / leaf / "config.pbtxt"
        config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
        shutil.copy(root / "tests" / "scale" / "standin.py", repository / leaf / "1" / "model.py")
    server = Triton(installed, repository, wish.models, tmp_path / "triton.log")
    try:
        server.wait()
        yield family, bundle, server
    finally:
        server.end()


def test_equal_to_in_process_and_recovered(case: Any, root: Path, tmp_path: Path) -> None:
    family, bundle, server = case
    code, said = server.probe()
    assert code == 0, said
    pictures = [root / "calib_data" / f"scene_{number:02}.png" for number in (1, 2)]
    asked = [(picture, question) for question in QUESTIONS[family] for picture in pictures]
    check(server, bundle, asked, tmp_path)

    with pytest.raises(RuntimeError, match=r"\[400\] the picture of [\d,]+ bytes is not a picture"):
        server.ask([root / "README.md"], [{"prompt": "x"}], tmp_path / "bad.npz")

    leaves = [leaf for leaf in ("encoder",) if (server.repository / leaf).exists()]
    for model in (bundle.name, *leaves):
        server.kill_stub(model)
        # Triton says that all is well.
        assert server.code("/v2/health/ready") == server.code(f"/v2/models/{bundle.name}/ready") == 200
        said = ""
        for _ in range(
            3
        ):  # as Kubernetes: where a new process got no CPU for a second, Triton gives it up as well
            code, told = server.probe("--recover")
            said += told
            if not code:
                break
        assert "unload and load" in said and code == 0, said + server.log.read_text()[-2000:]
        check(server, bundle, asked[:2], tmp_path)


def check(server: Triton, bundle: Path, asked: list[Any], tmp_path: Path) -> None:
    """What the client got is what this process computes."""
    seg = pixelrt.load(bundle)
    queries = [query_json.to_json(question) for _, question in asked]
    drawn = 0
    found = server.ask([picture for picture, _ in asked], queries, tmp_path / "found.npz")
    for (picture, question), (answer, masks) in zip(asked, found, strict=True):
        frame = seg.encode(picture)
        expected = seg.segment(frame, question)
        assert answer["text"] == expected.text
        assert masks.shape == (len(expected.masks), *frame.image.shape[:2])
        for number, mask in enumerate(expected.masks):
            # Questions that the server gathers are read together: sums in another order may turn a pixel.
            assert np.count_nonzero(masks[number] != mask.mask) <= 1
            assert np.array_equal(rle.decode(answer["masks"][number]["rle"]), masks[number])
        drawn += len(masks)
    assert drawn
