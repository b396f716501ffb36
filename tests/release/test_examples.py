"""The scripts of examples/ do what they say, with the shipped checkpoint."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image


def run(root: Path, script: str, *arguments: object, cwd: Path) -> str:
    path = os.pathsep.join(str(root / folder) for folder in ("runtime", "export", "kernels"))
    command = [sys.executable, str(root / "examples" / script), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here_and_short(root: Path) -> None:
    scripts = {file.name: file.read_text(encoding="utf-8") for file in (root / "examples").glob("*.py")}
    known = {"one_picture.py", "many_questions.py", "folder_to_coco.py", "camera.py", "ask_a_server.py"}
    assert set(scripts) == known
    assert all(text.count("\n") < 50 for text in scripts.values())


def test_one_picture(root: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    said = run(root, "one_picture.py", tiny_bundle, cwd=tmp_path)
    assert said.splitlines()[0].strip()
    assert Image.open(tmp_path / "overlay.png").width >= 280


def test_many_questions(root: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    said = run(root, "many_questions.py", tiny_bundle, cwd=tmp_path).splitlines()
    assert len(said) == 5 and said[0].endswith("once")
    assert all("->" in line for line in said[1:])


@pytest.mark.parametrize("every", [0, 2])
def test_camera(root: Path, tiny_bundle: Path, tmp_path: Path, every: int) -> None:
    question = "Segment the striped shapes."
    *frames, last = run(
        root, "camera.py", tiny_bundle, root / "calib_data", question, every, cwd=tmp_path
    ).splitlines()
    pictures = sorted(file.stem for file in (root / "calib_data").glob("*.png"))
    seen = [line.split()[0] for line in frames]
    assert seen == sorted(set(seen)) and set(seen) <= set(pictures) and seen[-1] == pictures[-1]
    assert last == f"{len(seen)} answered, {len(pictures) - len(seen)} dropped for newer ones, 0 failed"
    assert all("asked" in line for line in frames) or every


def test_folder_to_coco(root: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed (extra dev)")
    run(
        root,
        "folder_to_coco.py",
        tiny_bundle,
        root / "calib_data",
        "Segment the dotted shapes.",
        cwd=tmp_path,
    )
    read = coco.COCO(tmp_path / "coco.json")
    assert len(read.getImgIds()) == len(list((root / "calib_data").glob("*.png")))
    annotations = read.loadAnns(read.getAnnIds())
    assert annotations, "no mask in any sample picture"
    for annotation in annotations:
        assert int(read.annToMask(annotation).sum()) == annotation["area"]
    json.dumps(annotations[0]["segmentation"])


class Moody(BaseHTTPRequestHandler):
    """Refuses, hangs up, fails and then answers, or says that the question is wrong."""

    seen: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        if b"wrong" in body:
            return self.say(400, {"error": {"message": "this is wrong"}})
        if len(self.seen) == 2:
            return self.connection.close()
        code = {1: 429, 3: 500}.get(len(self.seen), 200)
        self.say(code, {"text": "Sure.", "masks": [{"label": "mug", "box": None}]})

    def say(self, code: int, document: object) -> None:
        self.send_response(code)
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_ask_a_server_asks_again_where_that_may_help(root: Path, tmp_path: Path) -> None:
    handler = type("Handler", (Moody,), {"seen": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, picture = f"http://127.0.0.1:{server.server_port}", tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n--bytes")
    try:
        said = run(root, "ask_a_server.py", url, picture, "the mug", cwd=tmp_path)
        assert said == "Sure. ('mug', None)\n" and len(handler.seen) == 4
        assert len(set(map(len, handler.seen))) == 1 and picture.read_bytes() in handler.seen[0]
        ask = runpy.run_path(str(root / "examples" / "ask_a_server.py"))["ask"]
        with pytest.raises(RuntimeError, match=r"400: .*this is wrong"):
            ask(url, b"x", prompt="wrong")
        assert len(handler.seen) == 5
    finally:
        server.shutdown()
        server.server_close()
