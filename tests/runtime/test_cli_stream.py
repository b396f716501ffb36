"""`pixelrt segment --stream`, with a segmenter that needs no model: what is printed, and what is in the folder when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pixelrt import rle
from pixelrt.cli import main
from pixelrt.image import open_image
from pixelrt.masks import Answer, Mask

SHAPE = (40, 60)
TEXT = "A cup [SEG] and a jug [SEG]."


def mask(index: int, label: str) -> Mask:
    plane = np.zeros(SHAPE, bool)
    plane[index : index + 5, 5:20] = True
    return Mask(plane, 0.9, label, None, (5, index, 20, index + 5), np.zeros((2, 2), np.float32))


class FakeSegmenter:
    """Streams `pieces`; a function among them is called in its turn."""

    backend = "fake"

    def __init__(self, path: Path) -> None:
        self.bundle = SimpleNamespace(path=path, sha256="ab" * 32)
        cup, jug = mask(0, "cup"), mask(10, "jug")
        answer = Answer(TEXT, [5, 6, 7], [cup, jug], {"language": 9.0, "pixel_decoder": 9.0})
        self.pieces: list[Any] = ["A", " cup", " [SEG]", cup, " and", " a jug [SEG]", jug, ".", answer]

    def check(self, *_: Any) -> list[int]:
        return []

    def encode(self, image: Any) -> Any:
        return SimpleNamespace(image=open_image(image), timing={"encode": 4.0})

    def segment(self, frame: Any, prompt: str, max_new_tokens: int, seg_runs: str) -> Answer:
        answer: Answer = self.pieces[-1]
        return answer

    def stream(self, frame: Any, prompt: str, max_new_tokens: int, seg_runs: str) -> Iterator[Any]:
        for piece in self.pieces:
            if callable(piece):
                piece()
            else:
                yield piece


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSegmenter:
    segmenter = FakeSegmenter(tmp_path / "bundle")
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: segmenter)
    return segmenter


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def there(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The folder's pictures, and its answer.json, which names all of them and no other."""
    document = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    pictures = sorted(file.name for file in folder.iterdir() if file.suffix == ".png")
    named = [entry["file"] for entry in document["masks"]]
    named += [document["overlay"]] if "overlay" in document else []
    assert sorted(named) == pictures
    return pictures, document


def test_words_and_masks_as_they_come(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", "b", picture, "Both.", "--out", out, "--stream")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "A cup [SEG]\n"
        f"mask 1  cup  score 0.90  box 5,0,20,5  75 px  {out / 'mask_1.png'}\n"
        "and a jug [SEG]\n"
        f"mask 2  jug  score 0.90  box 5,10,20,15  75 px  {out / 'mask_2.png'}\n"
        ".\n\nbackend: fake\n"
    )
    assert "total (stages overlap)" in result.output and "no masks" not in result.output
    pictures, document = there(out)
    assert pictures == ["mask_1.png", "mask_2.png", "overlay.png"]
    assert document["text"] == TEXT and document["finished"]


def test_json_lines(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", "b", picture, "Both.", "--out", out, "--stream", "--json")
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [next(iter(line)) for line in lines] == [
        *["text"] * 3,
        "mask",
        *["text"] * 2,
        "mask",
        "text",
        "answer",
    ]
    assert "".join(line["text"] for line in lines if "text" in line) == TEXT
    document = lines[-1]["answer"]
    assert document == there(out)[1]
    assert [line["mask"] for line in lines if "mask" in line] == document["masks"]
    for entry in document["masks"]:
        assert np.array_equal(np.asarray(Image.open(out / entry["file"])) > 0, rle.decode(entry["rle"]))


def test_the_files_are_those_of_an_answer_that_was_not_streamed(
    fake: FakeSegmenter, picture: Path, tmp_path: Path
) -> None:
    streamed, whole = tmp_path / "streamed", tmp_path / "whole"
    run("segment", "b", picture, "Both.", "--out", streamed, "--stream")
    run("segment", "b", picture, "Both.", "--out", whole)
    assert {f.name: f.read_bytes() for f in streamed.iterdir()} == {
        f.name: f.read_bytes() for f in whole.iterdir()
    }


def test_the_folder_holds_what_was_said_at_any_time(
    fake: FakeSegmenter, picture: Path, tmp_path: Path
) -> None:
    """The earlier answer until the first mask; then the masks so far, in an answer.json that says so."""
    out = tmp_path / "out"
    run("segment", "b", picture, "Both.", "--out", out, "--stream")
    seen: list[tuple[list[str], str, bool]] = []

    def look() -> None:
        pictures, document = there(out)
        seen.append((pictures, document["text"], document["finished"]))

    for place in (8, 7, 4, 3):
        fake.pieces.insert(place, look)
    assert run("segment", "b", picture, "Again.", "--out", out, "--stream").exit_code == 0
    both = ["mask_1.png", "mask_2.png"]
    assert seen == [
        ([*both, "overlay.png"], TEXT, True),
        (["mask_1.png"], "A cup [SEG]", False),
        (both, "A cup [SEG] and a jug [SEG]", False),
        (both, "A cup [SEG] and a jug [SEG]", False),
    ]


def test_an_answer_that_fails_on_the_way(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    """What was given stays; the next answer takes its place."""
    out = tmp_path / "out"

    def fail() -> None:
        raise ArithmeticError("not finite")

    fake.pieces.insert(5, fail)
    result = run("segment", "b", picture, "Both.", "--out", out, "--stream")
    assert result.exit_code == 1 and "failed: ArithmeticError: not finite" in result.output
    assert there(out)[0] == ["mask_1.png"]
    del fake.pieces[5]
    assert run("segment", "b", picture, "Both.", "--out", out).exit_code == 0
    assert there(out)[0] == ["mask_1.png", "mask_2.png", "overlay.png"]


def test_no_masks(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    fake.pieces = ["None", " here.", Answer("None here.", [5], [], {}, finished=False)]
    result = run("segment", "b", picture, "Both.", "--out", tmp_path / "out", "--stream")
    assert result.output.startswith("None here.\nthe answer was cut off")
    assert "no masks in this answer" in result.output


def test_a_recording_is_not_streamed(fake: FakeSegmenter, picture: Path, tmp_path: Path) -> None:
    result = run("segment", "b", picture, "Both.", "--stream", "--record", tmp_path / "r.npz")
    assert result.exit_code == 2 and "do not go together" in result.output
