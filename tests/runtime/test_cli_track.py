"""`pixelrt track`, with a bundle that needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import psalm_toy as toy
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pixelrt.cli import main
from pixelrt.cli.track import objects_of
from pixelrt.errors import InputError

SHAPE = (75, 100)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toy.Toy:
    made = toy.tiled(tmp_path)
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: made.load())
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def film(tmp_path: Path) -> Path:
    folder = tmp_path / "film"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"f{i}.png")
    return folder


def first_mask(path: Path, mode: str = "P") -> Path:
    """Objects 2 and 9, as a label map or in two colours."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:10, 50:60], labels[22:30, 35:45] = 9, 2
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0] * 128)
    if mode == "RGB":
        picture = Image.fromarray(np.stack([labels * 20, labels, labels], -1))
    picture.save(path)
    return path


def test_track(bundle: toy.Toy, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("track", "b", film, "--mask", first_mask(tmp_path / "first.png"), "--out", out)
    assert result.exit_code == 0, result.output
    assert names(out) == ["labels", "overlays"]
    assert names(out / "labels") == names(out / "overlays") == ["f0.png", "f1.png", "f2.png"]
    first = np.asarray(Image.open(out / "labels" / "f0.png"))
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "first.png")))
    later = Image.open(out / "labels" / "f2.png")
    assert later.mode == "P" and later.size == (SHAPE[1], SHAPE[0])
    # The first object of the query is value 2, which the toy finds as query 3; the second is query 7.
    assert np.asarray(later)[5, 53] == 2 and np.asarray(later)[27, 38] == 9
    assert set(np.unique(later)) == {0, 2, 9}
    assert "3 frames, 2 objects" in result.output and len(bundle.encoder.calls) == 3


def test_track_by_a_question(bundle: toy.Toy, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("track", "b", film, "--prompt", "the red mug", "--every", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in result.output.splitlines()[:3]] == [
        ["f0", "asked"],
        ["f1", "-----"],
        ["f2", "asked"],
    ]
    assert "3 frames, 2 questions" in result.output
    assert names(out) == ["answers.jsonl", "labels", "overlays"]
    assert names(out / "labels") == names(out / "overlays") == ["f0.png", "f1.png", "f2.png"]
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [(a["frame"], a["asked"]) for a in answers] == [("f0", True), ("f1", False), ("f2", True)]
    for answer in answers:
        labels = np.asarray(Image.open(out / "labels" / f"{answer['frame']}.png"))
        assert [mask["area"] for mask in answer["masks"]] == [int((labels == 1).sum())] != [0]


def test_label_maps_of_all_modes(tmp_path: Path) -> None:
    values, objects = objects_of(first_mask(tmp_path / "p.png", "P"))
    assert values == [2, 9] and objects[0][25, 40] and objects[1][5, 55]
    assert objects_of(first_mask(tmp_path / "l.png", "L"))[0] == [2, 9]
    values, coloured = objects_of(first_mask(tmp_path / "rgb.png", "RGB"))
    assert values == [1, 2] and np.array_equal(coloured[0], objects[1])  # by the first pixel in the picture
    assert np.array_equal(coloured[1], objects[0])
    Image.fromarray(np.eye(9, dtype=bool)).save(tmp_path / "one.png")
    assert objects_of(tmp_path / "one.png")[0] == [1]
    Image.new("L", (5, 5)).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match="marks no object"):
        objects_of(tmp_path / "empty.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="100 at most"):
        objects_of(tmp_path / "photo.png")


def test_track_refuses(bundle: toy.Toy, film: Path, tmp_path: Path, monkeypatch: Any) -> None:
    mask, out = first_mask(tmp_path / "first.png"), tmp_path / "out"
    small = tmp_path / "small.png"
    Image.fromarray(np.ones((5, 5), np.uint8)).save(small)
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none", "--mask", mask], "does not exist"),
        ([film, "--mask", tmp_path / "none.png"], "does not exist"),
        ([film, "--mask", small], "a mask of 5 x 5 pixels; the picture has 100 x 75"),
        ([film], "Give --mask"),
        ([film, "--mask", mask, "--prompt", "the mug"], "Give --mask"),
        ([film, "--prompt", " "], "is no sentence"),
        ([film, "--mask", mask, "--out", mask], "is a file"),
    ]
    for arguments, words in cases:
        result = run("track", "b", *arguments, *(() if "--out" in arguments else ("--out", out)))
        assert result.exit_code == 2 and words in result.output, result.output
    segmenter = type("Words", (), {"bundle": bundle.bundle})()
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: segmenter)
    result = run("track", "b", film, "--mask", mask, "--out", out)
    assert result.exit_code == 2 and "does not follow objects that are marked" in result.output
