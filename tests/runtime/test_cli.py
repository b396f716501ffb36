"""`pixelrt segment`, with a segmenter that needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pixelrt import rle
from pixelrt.cli import answer_folder, main
from pixelrt.errors import InputError
from pixelrt.image import open_image
from pixelrt.masks import Answer, Mask, labelled_spans

TEXT = "Sure, the red circle [SEG] and the blue star [SEG]."
SHAPE = (40, 60)


class FakeSegmenter:
    """Draws one rectangle for each marker of `text`; the last one of three is empty."""

    backend = "fake"

    def __init__(self, path: Path, text: str = TEXT) -> None:
        self.bundle = SimpleNamespace(path=path, sha256="ab" * 32)
        self.text = text

    def encode(self, image: Any) -> Any:
        return SimpleNamespace(image=open_image(image))

    def segment(
        self, frame: Any, prompt: str, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Answer:
        if not prompt.strip():
            raise InputError("the prompt is empty. Ask something.")
        masks = []
        for index, (label, span) in enumerate(labelled_spans(self.text)):
            plane = np.zeros(frame.image.shape[:2], bool)
            plane[index : 10 * (index + 1), 5:20] = index < 2
            box = (5, index, 20, 10 * (index + 1)) if index < 2 else None
            masks.append(Mask(plane, 0.9, label, span, box, np.zeros((2, 2), np.float32)))
        self.asked = (prompt, max_new_tokens, seg_runs)
        return Answer(self.text, [5, 6, 7], masks, {"image": 1.0, "pixel_decoder": 2.5})


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSegmenter:
    segmenter = FakeSegmenter(tmp_path / "bundle")
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto": segmenter)
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
    assert document["timing_ms"] == {"image": 1.0, "pixel_decoder": 2.5} and document["backend"] == "fake"
    assert [mask["label"] for mask in document["masks"]] == ["red circle", "blue star"]
    for mask in document["masks"]:
        pixels = Image.open(out / mask["file"])
        assert pixels.mode == "L" and set(np.unique(pixels)) == {0, 255}
        assert np.array_equal(np.asarray(pixels) > 0, rle.decode(mask["rle"]))
    assert Image.open(out / document["overlay"]).width >= 960
    for words in (TEXT, "red circle", "blue star", "0.90", "pixel decoder", "total", "overlay.png", "next:"):
        assert words in result.output
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


def test_no_answer_names_files_that_are_not_its_own(
    fake: FakeSegmenter, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the files take their places, a folder holds no answer.json."""
    out = tmp_path / "out"
    run("segment", "b", picture, "Both.", "--out", out)

    def replace(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(answer_folder.os, "replace", replace)
    assert run("segment", "b", picture, "Again.", "--out", out).exit_code == 1
    assert names(out) == ["overlay.png"]


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
