"""`pixelrt segment`, with a segmenter that needs no model."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from marked import labelled_spans
from PIL import Image
from pixelrt import rle
from pixelrt.cli import answer_folder, main
from pixelrt.errors import InputError
from pixelrt.image import open_image
from pixelrt.masks import Answer, Mask

TEXT = "Sure, the red circle [SEG] and the blue star [SEG]."
SHAPE = (40, 60)


class FakeSegmenter:
    """Draws one rectangle for each marker of `text`; the last one of three is empty."""

    backend = "fake"

    def __init__(self, path: Path, text: str = TEXT) -> None:
        self.bundle = SimpleNamespace(path=path, sha256="ab" * 32)
        self.text = text
        self.finished = True
        self.asked: Any = None

    def check(self, prompt: str, image: Any, max_new_tokens: int, seg_runs: str) -> list[int]:
        if not prompt.strip():
            raise InputError("the prompt is empty. Ask something.")
        return []

    def encode(self, image: Any) -> Any:
        return SimpleNamespace(image=open_image(image), timing={"image": 1.0, "encode": 4.0})

    def segment(
        self, frame: Any, prompt: str, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Answer:
        masks = []
        for index, (label, span) in enumerate(labelled_spans(self.text)):
            plane = np.zeros(frame.image.shape[:2], bool)
            plane[index : 10 * (index + 1), 5:20] = index < 2
            box = (5, index, 20, 10 * (index + 1)) if index < 2 else None
            masks.append(Mask(plane, 0.9, label, span, box, np.zeros((2, 2), np.float32)))
        self.asked = (prompt, max_new_tokens, seg_runs)
        return Answer(self.text, [5, 6, 7], masks, {"pixel_decoder": 2.5}, self.finished)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSegmenter:
    segmenter = FakeSegmenter(tmp_path / "bundle")
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: segmenter)
    return segmenter


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_segment_writes_everything(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    result = run(
        "segment",
        "b",
        picture,
        "Segment both.",
        "--out",
        out,
        "--max-new-tokens",
        9,
        "--seg-runs",
        "original",
    )
    assert result.exit_code == 0, result.output
    assert fake.asked == ("Segment both.", 9, "original")
    assert names(out) == ["answer.json", "mask_1.png", "mask_2.png", "overlay.png"]
    document = json.loads((out / "answer.json").read_text(encoding="utf-8"))
    assert (
        document["text"] == TEXT
        and document["token_ids"] == [5, 6, 7]
        and document["prompt"] == "Segment both."
    )
    assert document["image"] == str(picture) and document["image_size"] == list(SHAPE)
    assert document["bundle"] == {"path": str(tmp_path / "bundle"), "sha256": "ab" * 32}
    assert document["timing_ms"] == {"image": 1.0, "encode": 4.0, "pixel_decoder": 2.5}
    assert document["backend"] == "fake" and document["finished"] is True
    assert "backend: fake\n" in result.output
    assert [mask["label"] for mask in document["masks"]] == ["red circle", "blue star"]
    for mask in document["masks"]:
        pixels = Image.open(out / mask["file"])
        assert pixels.mode == "L" and set(np.unique(pixels)) == {0, 255}
        assert np.array_equal(np.asarray(pixels) > 0, rle.decode(mask["rle"]))
    assert Image.open(out / document["overlay"]).width >= 960
    for words in (TEXT, "red circle", "blue star", "0.90", "encode", "pixel decoder", "overlay.png", "next:"):
        assert words in result.output
    assert "cut off" not in result.output
    assert result.output.index("load") < result.output.index("pixel decoder") < result.output.index("total")


def test_segment_prints_json(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", "b", picture, "Both.", "--out", out, "--json")
    assert json.loads(result.output) == json.loads((out / "answer.json").read_text(encoding="utf-8"))


def test_default_folder(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("segment", "b", picture, "Both.").exit_code == 0
    assert (tmp_path / "pixelrt-out" / "answer.json").is_file()


def test_a_later_answer_replaces_the_earlier(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fake.text = "They are [SEG] [SEG] [SEG]."
    result = run("segment", "b", picture, "All.", "--out", out)
    assert "empty" in result.output and (out / "mask_3.png").is_file()
    (out / "mask_of_mine.png").write_bytes(b"mine")
    (out / "notes.txt").write_text("mine")
    fake.text = "There is none."
    result = run("segment", "b", picture, "The zebra.", "--out", out)
    assert "no masks" in result.output
    assert names(out) == ["answer.json", "mask_of_mine.png", "notes.txt", "overlay.png"]


def test_a_failure_while_writing_leaves_the_earlier_answer(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("segment", "b", picture, "Both.", "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer_folder.json, "dumps", full)
    result = run("segment", "b", picture, "Again.", "--out", out)
    assert result.exit_code == 1 and "failed: OSError" in result.output and "Traceback" not in result.output
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("moves", range(8))
def test_a_failure_while_files_take_their_places_is_undone(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """On the way an answer.json is there only with all the files it names."""
    out = tmp_path / "out"
    run("segment", "b", picture, "Both.", "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    move, moved = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal moved
        if moved == moves:
            moved = -100  # what was done is undone
            raise OSError(5, "Input/output error")
        moved += 1
        move(source, target)
        there = set(names(out))
        assert "answer.json" not in there or {"mask_1.png", "mask_2.png", "overlay.png"} <= there

    monkeypatch.setattr(answer_folder.os, "replace", replace)
    assert run("segment", "b", picture, "Again.", "--out", out).exit_code == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


OURS = {"bundle": {"sha256": "ab"}, "overlay": "overlay.png", "masks": [{"file": "mask_1.png"}]}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"mask_7.png": "mine"}, "mask_7.png"),
        ({"overlay.png": "mine"}, "overlay.png"),
        ({"answer.json": "[1]"}, "answer.json"),
        ({"answer.json": '{"masks": [], "overlay": "overlay.png"}'}, "answer.json"),
        ({"answer.json": "[" * 99_999}, "answer.json"),
        ({"answer.json": None}, "answer.json"),
        ({"overlay.png": None}, "overlay.png"),
        ({"answer.json": json.dumps(OURS), "mask_1.png": "x", "mask_2.png": "mine"}, "(mask_2.png)"),
        ({"answer.json": json.dumps(OURS), "mask_1.png": None}, "(mask_1.png)"),
        ({f"mask_{n}.png": "mine" for n in range(1, 6)}, "(mask_1.png, mask_2.png, mask_3.png, …)"),
    ],
)
def test_files_of_others_are_refused_before_the_model_runs(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, there: dict[str, str | None], words: str
) -> None:
    """None stands for a folder of that name."""
    out = tmp_path / "out"
    out.mkdir()
    for name, text in there.items():
        (out / name).mkdir() if text is None else (out / name).write_text(text)
    result = run("segment", "b", picture, "Both.", "--out", out)
    assert result.exit_code == 2 and "did not write" in result.output and words in result.output
    assert fake.asked is None and names(out) == sorted(there)
    assert all((out / name).read_text() == text for name, text in there.items() if text is not None)


def test_names_that_look_like_ours_are_left_alone(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = ["mask_0.png", "mask_01.png", "mask_1.png.bak", "my_mask_1.png"]
    for name in mine:
        (out / name).write_text("mine")
    assert run("segment", "b", picture, "Both.", "--out", out).exit_code == 0
    assert all((out / name).read_text() == "mine" for name in mine)


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_runs(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdtemp(**_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    monkeypatch.setattr(answer_folder.tempfile, "mkdtemp", mkdtemp)
    for out in (tmp_path / "new" / "er", tmp_path / ("n" * 300), picture / "below"):
        result = run("segment", "b", picture, "Both.", "--out", out)
        assert result.exit_code == 2 and "Choose another folder with --out." in result.output
        assert fake.asked is None and names(tmp_path) == ["picture.png"]


def test_answer_that_was_cut_off(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    fake.finished = False
    asked = ["segment", "b", picture, "Both.", "--out", tmp_path / "out"]
    result = run(*asked, "--max-new-tokens", 2)
    assert "the answer was cut off after 3 tokens: raise --max-new-tokens\n" in result.output
    assert "cut off after 3 tokens: the model has no room" in run(*asked).output
    assert json.loads((tmp_path / "out" / "answer.json").read_text())["finished"] is False


def test_file_names_that_are_not_utf8(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    odd.mkdir()
    image = picture.rename(odd / "picture.png")
    fake.bundle.path = odd
    for more in ([], ["--json"]):
        result = run("segment", odd, image, "Both.", "--out", odd / "out", *more)
        assert result.exit_code == 0 and "odd\ufffd" in result.output
    document = json.loads((odd / "out" / "answer.json").read_text(encoding="utf-8"))
    assert document["image"] == f"{tmp_path}/odd\ufffd/picture.png"
    assert document["bundle"]["path"] == f"{tmp_path}/odd\ufffd"
    result = run("segment", odd, odd / "none.png", "Both.")
    assert result.exit_code == 2 and "odd\ufffd/none.png does not exist" in result.output


@pytest.mark.parametrize(
    ("prompt", "image", "words"), [("  ", "picture.png", "empty"), ("x", "none.png", "none.png")]
)
def test_bad_input_exits_2_and_writes_nothing(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, prompt: str, image: str, words: str
) -> None:
    out = tmp_path / "out"
    result = run("segment", "b", tmp_path / image, prompt, "--out", out)
    assert result.exit_code == 2 and result.output.startswith("error: ") and words in result.output
    assert result.output.count("\n") == 1 and not out.exists()


def test_out_that_cannot_be_a_folder(fake: FakeSegmenter, picture: Path) -> None:
    # A file is noticed before anything is loaded: the bundle's absence is not.
    result = run("segment", "b", picture.parent / "none.png", "Both.", "--out", picture)
    assert result.exit_code == 2 and "--out" in result.output
    for out in (picture, picture / "below"):
        result = run("segment", "b", picture, "Both.", "--out", out)
        assert result.exit_code == 2 and result.output.startswith("error: ") and str(out) in result.output


@pytest.mark.parametrize(
    "error", [RuntimeError("it\nbroke"), OSError(5, "io"), KeyError("k"), AssertionError()]
)
def test_failures_exit_1_in_one_line(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def encode(_: object) -> None:
        raise error

    monkeypatch.setattr(fake, "encode", encode)
    asked = ["segment", "b", picture, "Both.", "--out", tmp_path / "out"]
    result = run(*asked)
    assert result.exit_code == 1 and result.output.startswith(f"failed: {type(error).__name__}")
    assert result.output.count("\n") == 1
    for arguments in (["--debug", *asked], [*asked, "--debug"]):
        result = run(*arguments)
        assert result.exit_code == 1 and "Traceback" in result.output and "in encode" in result.output


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST]
)
def test_paths_that_cannot_be_used_are_bad_input(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def encode(_: object) -> None:
        raise OSError(code, os.strerror(code), *path)

    monkeypatch.setattr(fake, "encode", encode)
    asked = ["segment", "b", picture, "Both.", "--out", tmp_path / "out"]
    path = ["models/x"]
    result = run(*asked)
    assert result.exit_code == 2
    start = f"error: models/x cannot be read or written: {os.strerror(code)}. "
    assert result.output.startswith(start) and result.output.count("\n") == 1
    path = []
    assert run(*asked).exit_code == 1


def test_question_in_the_place_of_a_path(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    question = "Segment the mug. " * 30
    for arguments in (["segment", "b", question, picture], ["inspect", question]):
        result = run(*arguments)
        assert result.exit_code == 2 and "path of 5" in result.output, result.output
        assert "too long" in result.output and "mug" not in result.output


def test_interrupt_is_quiet(fake: FakeSegmenter, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "encode", encode)
    result = run("segment", "b", picture, "Both.")
    assert result.exit_code == 130 and result.output == ""


def test_missing_dependency_names_its_extra(
    fake: FakeSegmenter, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")

    monkeypatch.setattr(pixelrt, "load", load)
    result = run("segment", "b", picture, "Both.")
    assert result.exit_code == 2 and result.output.endswith("pip install 'pixelrt[tensorrt]'\n")
