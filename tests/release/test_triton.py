"""`pixelrt triton`: what it writes; its front model with a stand-in for Triton. The real one: test_triton_server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner
from pixelrt import query_json
from pixelrt.bundle import Bundle
from pixelrt.cli import main
from pixelrt.goldens.make import make_goldens
from pixelrt.queries import Classes, Refer, Regions
from pixelrt.triton import config
from pixelrt.triton.front import Front
from pixelrt_export.export import export_bundle

from tests.scale.pbtxt import parsed
from tests.scale.triton_stub import Request, Server

QUESTIONS = {
    "pixellm": ["Segment the red circle and the blue star.", "Segment the striped shapes."],
    "psalm": [Refer("the blue star"), Classes(["red circle", "blue star"]), Regions(points=[(72, 190)])],
}


def write(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["triton", *map(str, arguments)])


@pytest.fixture(scope="module", params=["pixellm", "psalm"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(family: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With golden outputs, where the probe's question comes from."""
    checkpoint = root / "checkpoints" / f"{family}-tiny"
    folder = tmp_path_factory.mktemp("with_goldens") / checkpoint.name
    return export_bundle(checkpoint, folder, goldens=make_goldens)


@pytest.fixture(scope="module")
def a_bundle(repository: Path) -> Path:
    """The repository's own copy of it."""
    (found,) = repository.glob("*/1/bundle")
    return found


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    done = write(bundle, folder)
    assert done.exit_code == 0, done.output
    assert f"--load-model=pixel_decoder --load-model=encoder --load-model={bundle.name}" in done.output
    return folder


@pytest.fixture(scope="module")
def front(repository: Path, bundle: Path) -> Front:
    return opened(repository, bundle.name)


def opened(repository: Path, name: str, **parameters: str) -> Front:
    told = parsed((repository / name / "config.pbtxt").read_text())
    written = {entry["key"][0]: entry["value"][0]["string_value"][0] for entry in told.get("parameters", [])}
    document = {
        "name": told["name"][0],
        "parameters": {key: {"string_value": value} for key, value in (written | parameters).items()},
    }
    args = {
        "model_config": json.dumps(document),
        "model_repository": str(repository / name),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }
    return Front(args, Server(repository))


def asked(picture: bytes, query: Any, **more: Any) -> Request:
    return Request(image=picture, query=json.dumps(query_json.to_json(query)).encode(), **more)


def test_the_repository(repository: Path, bundle: Path, family: str) -> None:
    name = bundle.name
    told = {
        model: parsed((repository / model / "config.pbtxt").read_text())
        for model in (name, "encoder", "pixel_decoder")
    }
    assert all(config["name"] == [model] for model, config in told.items())
    front = told[name]
    assert front["backend"] == ["python"] and (repository / name / "1" / "model.py").is_file()
    assert [port["name"] for port in front["input"]] == [["image"], ["query"], ["max_new_tokens"]]
    assert front["dynamic_batching"][0]["default_queue_policy"][0]["max_queue_size"] == [32]
    read = Bundle.read(bundle)
    assert Bundle.read(repository / name / "1" / "bundle").sha256 == read.sha256
    for leaf in ("encoder", "pixel_decoder"):
        graph = read.graph(leaf, activations="float32")
        for side, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            assert [port["name"][0] for port in told[leaf][side]] == [tensor.name for tensor in tensors]
        assert (repository / leaf / "1" / "model.onnx" / "weights.data").stat().st_ino == (
            bundle / "weights.data"
        ).stat().st_ino  # the same file under another name
    assert told["encoder"]["max_batch_size"] == [8] and told["pixel_decoder"]["max_batch_size"] == [0]
    sample = json.loads((repository / "sample.json").read_text())
    assert sample["models"] == [name, "encoder", "pixel_decoder"] and sample["expect"]["masks"]
    readme = (repository / "README.md").read_text()
    assert "livenessProbe" in readme and read.sha256 in readme
    for file in ("README.md", "client.py", "probe.py", f"{name}/1/model.py"):
        assert "@" not in (repository / file).read_text().replace("-F image=@", ""), file
    listed = json.loads((repository / "repository.json").read_text())["files"]
    there = {p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()}
    assert there == {*listed, "repository.json"}


def test_the_front_model_answers_as_in_process(front: Front, bundle: Path, family: str, root: Path) -> None:
    """Through leaves, and several questions gathered."""
    seg = pixelrt.load(bundle)
    picture = (root / "calib_data" / "scene_01.png").read_bytes()
    frame = seg.encode(picture)
    questions = QUESTIONS[family]
    front.pb.calls.clear()
    responses = front([asked(picture, question) for question in questions])
    assert front.pb.calls.count("encoder") == 1 and "pixel_decoder" in front.pb.calls
    answers = seg.segment_batch(frame, questions)  # to the last bit: sums are added up in one order
    for question, response, expected in zip(questions, responses, answers, strict=True):
        assert not response.has_error(), response.error().message()
        answer = json.loads(response.tensors["answer"].as_numpy()[0, 0])
        masks = response.tensors["masks"].as_numpy()
        assert answer["text"] == expected.text and len(expected.masks) == len(answer["masks"])
        assert expected.masks or question != questions[0]
        assert masks.dtype == np.bool_ and masks.shape == (1, len(expected.masks), *frame.image.shape[:2])
        for number, mask in enumerate(expected.masks):
            assert np.array_equal(masks[0, number], mask.mask)
            assert answer["masks"][number] | mask.to_json() == answer["masks"][number]


def test_a_picture_is_encoded_once_but_for_a_probe(front: Front, family: str, root: Path) -> None:
    picture = (root / "calib_data" / "scene_02.png").read_bytes()
    runs = []
    for parameters in ("", "", '{"fresh": true}', ""):
        front.pb.calls.clear()
        (response,) = front([asked(picture, QUESTIONS[family][0], parameters=parameters, wanted=("answer",))])
        assert set(response.tensors) == {"answer"}
        runs.append(front.pb.calls.count("encoder"))
    assert runs == [1, 0, 1, 0]


def test_bad_questions_get_a_sentence_and_harm_no_other(front: Front, family: str, root: Path) -> None:
    picture, good = (root / "calib_data" / "scene_01.png").read_bytes(), QUESTIONS[family][0]
    bad = {
        "no picture": (asked(b"hello", good), "not a picture"),
        "empty": (asked(b"", good), "is empty"),
        "no JSON": (Request(image=picture, query=b"{"), "not JSON"),
        "two questions": (Request(image=[[picture, picture]], query=b"{}"), "one question a request"),
        "nothing asked": (Request(image=picture, query=b"{}"), "neither a prompt nor a task"),
        "no tokens": (asked(picture, good, max_new_tokens=0), "max_new_tokens is 0"),
        "long": (
            Request(image=picture, query=json.dumps({"prompt": "x" * 5000}).encode()),
            "4,000 are allowed",
        ),
    }
    responses = front([request for request, _ in bad.values()] + [asked(picture, good)])
    for (what, (_, sentence)), response in zip(bad.items(), responses, strict=False):
        assert response.error().code == "invalid" and sentence in response.error().message(), what
    assert not responses[-1].has_error()


def test_a_leaf_that_fails_is_no_secret_told(front: Front, family: str, root: Path, capfd: Any) -> None:
    picture = (root / "calib_data" / "scene_03.png").read_bytes()
    front.pb.fails = True
    try:
        (response,) = front([asked(picture, QUESTIONS[family][0])])
    finally:
        front.pb.fails = False
    assert response.error().code == "internal" and "secret" not in response.error().message()
    assert "encoder failed: a secret of the machine" in capfd.readouterr().err
    (response,) = front([asked(picture, QUESTIONS[family][0])])
    assert not response.has_error()


def test_leaves_in_process_and_limits(repository: Path, bundle: Path, family: str, root: Path) -> None:
    alone = opened(repository, bundle.name, leaves="in-process", pixels="1000")
    (response,) = alone([asked((root / "calib_data" / "scene_01.png").read_bytes(), QUESTIONS[family][0])])
    assert "1,000 are allowed" in response.error().message() and not alone.pb.calls
    with pytest.raises(pixelrt.InputError, match="leaves is 'elsewhere'"):
        opened(repository, bundle.name, leaves="elsewhere")
    with pytest.raises(pixelrt.InputError, match=r"config\.pbtxt"):
        opened(repository, bundle.name, leaves="in-process", pixels="many")


def test_only_our_own_is_replaced(a_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    done = write(a_bundle, folder, "--leaves", "none", "--name", "one")
    assert done.exit_code == 0, done.output
    assert not (folder / "encoder").exists()
    assert write(a_bundle, folder, "--leaves", "none", "--name", "two").exit_code == 0
    assert (folder / "two").is_dir() and not (folder / "one").exists()
    for change in (folder / "two" / "config.pbtxt", folder / "other" / "config.pbtxt"):
        change.parent.mkdir(exist_ok=True)
        before = change.read_bytes() if change.exists() else None
        change.write_text("instance_group { count: 4 }")
        done = write(a_bundle, folder, "--name", "three")
        assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert change.name in done.stderr and (folder / "two").is_dir() and not (folder / "three").exists()
        change.unlink() if before is None else change.write_bytes(before)
    assert not [path for path in tmp_path.iterdir() if path != folder]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--name", "a/b"), "no name for the front model"),
        (("--name", "encoder"), "no name for the front model"),
        (("--leaves", "tensorrt"), "Give --gpu"),
        (("--leaves", "tensorrt", "--gpu"), "has no engines"),
        (("--backend", "torch"), "No backend 'torch'"),
        ((), "holds no golden outputs"),  # export_bundle alone makes none
    ],
)
def test_what_cannot_be_is_refused(
    tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = write(tiny_bundle, tmp_path / "models", *arguments)
    assert done.exit_code == 2 and sentence in done.stderr, done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_ours_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = write(tiny_bundle, tmp_path)
    assert done.exit_code == 2 and "no model repository of pixelrt" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    done = write(tiny_bundle, tiny_bundle / "models")
    assert done.exit_code == 2 and "lies in the bundle" in done.stderr
    done = write(tmp_path, tmp_path / "models")
    assert done.exit_code == 2 and "not a bundle" in done.stderr


def test_tensorrt_leaves(psalm_bundle: Path) -> None:
    """From an engine's record: its own types, and no more pictures at once than its profiles take."""
    from pixelrt.engines import EngineRecord, Value

    graph = Bundle.read(psalm_bundle, verify=False).graph("encoder", activations="float16")

    def value(tensor: Any) -> Value:
        return Value("float16" if tensor.dtype == "activations" else tensor.dtype, tensor.shape)

    inputs = {tensor.name: value(tensor) for tensor in graph.inputs}
    most = {"pixels": ((1, 3, 160, 160), (1, 3, 160, 160), (4, 3, 160, 160))}
    record = EngineRecord(
        "encoder", "encoder", "encoder.engine", 1, "", "", "", "fp16", "float16", "tensorrt", "11.4", "13", "sm_90",
        None, {"all": most}, None, inputs, {tensor.name: value(tensor) for tensor in graph.outputs}, 1, 1.0,
    )  # fmt: skip
    told = parsed(config.leaf_config(config.tensorrt_leaf("encoder", record, 8), gpu=True))
    assert told["max_batch_size"] == [4] and told["backend"] == ["tensorrt"]
    assert told["input"][0]["dims"] == [3, 160, 160] and told["output"][0]["data_type"] == ["TYPE_FP16"]
    assert told["instance_group"][0]["kind"] == ["KIND_GPU"]


# ---- the probe, against a server that says what a test tells it ----------------------------------------------


class Told(BaseHTTPRequestHandler):
    """`answers`: of each inference in turn; `asked`: the paths, and heads of inferences."""

    answers: list[tuple[int, Any]]
    asked: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked.append(self.path.removeprefix("/v2/"))
        code, told = (200, [])
        if self.path.endswith("/infer"):
            head = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
            assert head["parameters"] == {"priority": 1, "fresh": True}
            code, document = type(self).answers.pop(0)
            told = {"outputs": [{"data": [json.dumps(document)]}]} if code == 200 else {"error": document}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def told() -> Iterator[tuple[type[Told], str]]:
    handler = type("Handler", (Told,), {"answers": [], "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_probe(told: tuple[type[Told], str], tmp_path: Path) -> None:
    handler, url = told
    box, wanted = [10, 10, 60, 60], {"text": "Sure.", "size": [100, 100]}
    sample = {"model": "front", "models": ["front", "encoder"], "query": {"prompt": "x"}}
    sample["expect"] = {**wanted, "masks": [{"label": "a", "box": box, "area": 2000}]}
    files = Path(config.__file__).parent / "files"
    shutil.copy(files / "probe.py", tmp_path)
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    (tmp_path / "sample.png").write_bytes(b"a picture")

    def probe(*answers: tuple[int, Any], options: tuple[str, ...] = ()) -> tuple[int, str]:
        handler.answers[:], handler.asked[:] = answers, []
        command = [sys.executable, str(tmp_path / "probe.py"), "--url", url, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr and not handler.answers
        return done.returncode, done.stdout + done.stderr

    def answer(text: str = "Sure.", label: str = "a", edge: int = 60, area: int = 2000) -> tuple[int, Any]:
        return 200, {"text": text, "masks": [{"label": label, "box": [10, 10, edge, 60], "area": area}]}

    assert probe(answer())[0] == 0
    assert probe(answer(edge=63, area=2050))[0] == 0, "other backends round otherwise"
    for wrong in (
        answer("No."),
        answer(label="b"),
        answer(edge=70),
        answer(area=1500),
        (200, {"text": "Sure.", "masks": []}),
    ):
        code, said = probe(wrong)
        assert code == 1 and "expected" in said
    code, said = probe((500, "Stub process is not healthy"))
    assert code == 1 and "Stub process" in said and handler.asked == ["models/front/infer"]
    assert probe((200, "no document"))[0] == 1
    code, said = probe((500, "Stub process is not healthy"), answer(), options=("--recover",))
    assert code == 0 and "unload and load" in said
    models = "repository/models"
    assert [path for path in handler.asked if path != "repository/index"] == [
        "models/front/infer", f"{models}/front/unload", f"{models}/encoder/unload", f"{models}/encoder/load",
        f"{models}/front/load", "models/front/infer",
    ]  # fmt: skip
    assert probe((500, "dead"), (500, "dead"), options=("--recover",))[0] == 1
    url = "http://127.0.0.1:9"
    assert "does not answer" in probe()[1]
