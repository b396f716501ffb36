"""`pixelrt segment --task …` and `pixelrt track`, with a bundle that needs no model."""

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
from pixelrt.cli.query_options import read_mask
from pixelrt.queries import Classes, Refer, Regions

SHAPE = (75, 100)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toy.Toy:
    made = toy.tiled(tmp_path)
    segmenter = made.load()
    answer = segmenter.segment

    def segment(frame: Any, prompt: Any, **options: Any) -> Any:
        made.asked = prompt  # type: ignore[attr-defined]
        return answer(frame, prompt, **options)

    segmenter.segment = segment  # type: ignore[method-assign]
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: segmenter)
    return made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("sky\n\n  a tree \n", encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_panoptic(bundle: toy.Toy, picture: Path, classes: Path, tmp_path: Path) -> None:
    out, things = tmp_path / "out", tmp_path / "things.txt"
    things.write_text("a tree\n")
    result = run(
        "segment", "b", picture, "--task", "panoptic", "--classes", classes, "--things", things, "--out", out
    )
    assert result.exit_code == 0, result.output
    assert bundle.asked.names == ("sky", "a tree") and bundle.asked.things == {"a tree"}
    assert names(out) == [
        "answer.json", "mask_1.png", "mask_2.png", "overlay.png", "panoptic.json", "panoptic.png",
    ]  # fmt: skip
    document = json.loads((out / "answer.json").read_text())
    assert document["prompt"] == "panoptic, 2 classes: sky, a tree"
    assert document["files"] == ["panoptic.png", "panoptic.json"]
    assert [m["label"] for m in document["masks"]] == ["sky", "a tree"]
    coco = json.loads((out / "panoptic.json").read_text())
    assert coco["images"][0]["file_name"] == "picture.png"
    assert [s["category_id"] for s in coco["annotations"][0]["segments_info"]] == [0, 1]
    ids = np.asarray(Image.open(out / "panoptic.png"))[..., 0]
    assert np.array_equal(ids == 2, read_mask(out / "mask_2.png"))
    for words in ("a tree", "language", "overlay.png", "--task"):
        assert words in result.output


def test_an_answer_of_another_kind_leaves_nothing_behind(
    bundle: toy.Toy, picture: Path, classes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for task, files in (
        ("panoptic", {"panoptic.json", "panoptic.png"}),
        ("instance", {"instances.json"}),
        ("semantic", {"semantic.png"}),
    ):
        assert run("segment", "b", picture, "--task", task, "--classes", classes, "--out", out).exit_code == 0
        assert {n for n in names(out) if not n.startswith("mask_")} == {"answer.json", "overlay.png", *files}
    assert run("segment", "b", picture, "--task", "referring", "the mug", "--out", out).exit_code == 0
    assert names(out) == ["answer.json", "mask_1.png", "overlay.png"]


def test_instances_and_their_least_score(
    bundle: toy.Toy, picture: Path, classes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("segment", "b", picture, "--task", "instance", "--classes", classes, "--min-score", 0.5,
               "--out", out).exit_code == 0  # fmt: skip
    coco = json.loads((out / "instances.json").read_text())
    assert sorted(a["category_id"] for a in coco["annotations"]) == [0, 1]


def test_categories_as_json(bundle: toy.Toy, picture: Path, tmp_path: Path) -> None:
    entries = [{"id": 7, "name": "sky", "isthing": 0}, {"id": 9, "name": "cup", "isthing": 1}]
    for number, content in enumerate((entries, {"categories": entries})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        result = run(
            "segment", "b", picture, "--task", "panoptic", "--classes", path, "--out", tmp_path / "out"
        )
        assert result.exit_code == 0, result.output
        assert isinstance(bundle.asked, Classes)
        assert bundle.asked.names == ("sky", "cup") and bundle.asked.things == {"cup"}


def test_referring(bundle: toy.Toy, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["segment", "b", picture, "--task", "referring", "the red mug", "--out", out]
    assert run(*command).exit_code == 0
    assert bundle.asked == Refer("the red mug")
    assert run(*command, "--several", "--none-below", 0.3).exit_code == 0
    assert bundle.asked == Refer("the red mug", several=True, none_below=0.3)
    assert json.loads((out / "answer.json").read_text())["prompt"] == "the red mug (several)"
    bundle.scores[:, 0] = -9
    result = run(*command, "--none-below", 0.3)
    assert result.exit_code == 0 and "no masks in this answer" in result.output


def test_interactive(bundle: toy.Toy, picture: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(*SHAPE, dtype=np.uint8) * 255).save(mask)
    result = run("segment", "b", picture, "--task", "interactive", "--point", "70,5", "--point", "8,9.5", "--scribble",
                 "1,2 30,40", "--box", "3,4,50,60", "--mask", mask, "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert isinstance(bundle.asked, Regions)
    assert bundle.asked.points == (((70, 5),), ((8, 9),)) and bundle.asked.boxes == ((3, 4, 50, 60),)
    assert bundle.asked.scribbles == (((1, 2), (30, 40)),)
    assert np.array_equal(bundle.asked.masks[0], np.eye(*SHAPE, dtype=bool))
    document = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert document["prompt"] == "point 70,5, point 8,9, scribble 1,2 30,40, box 3,4,50,60, mask"
    assert [m["label"] for m in document["masks"]] == ["point 1", "point 2", "scribble 3", "box 4", "mask 5"]


REFUSED: list[tuple[list[object], str]] = [
    ([], "Missing argument 'PROMPT'"),
    (["--task", "everything"], "everything"),
    (["--task", "panoptic"], "--classes FILE"),
    (["--task", "panoptic", "--classes", "none.txt"], "cannot be read"),
    (["--task", "panoptic", "--classes", "picture.png"], "UTF-8"),
    (["--task", "panoptic", "--classes", "bad.json"], "COCO categories"),
    (["--task", "panoptic", "--classes", "classes.txt", "Segment."], "takes no PROMPT"),
    (["--task", "panoptic", "--classes", "classes.txt", "--things", "other.txt"], "'rock'"),
    (["--task", "panoptic", "--classes", "classes.txt", "--point", "1,2"], "--point was given"),
    (["--task", "panoptic", "--classes", "classes.txt", "--min-score", "0.5"], "--min-score was given"),
    (["--classes", "classes.txt", "Segment."], "it needs a --task"),
    (["--task", "referring"], "takes a PROMPT"),
    (["--task", "referring", "x", "--box", "1,2,3,4"], "--box was given"),
    (["--task", "interactive"], "0 regions"),
    (["--task", "interactive", "--point", "1"], "Give 2 numbers"),
    (["--task", "interactive", "--point", "1,b"], "Give 2 numbers"),
    (["--task", "interactive", "--box", "1,2,3"], "Give 4 numbers"),
    (["--task", "interactive", "--box", "9,9,3,3"], "x1 above x0"),
    (["--task", "interactive", "--point", "500,5"], "outside the picture"),
    (["--task", "interactive", "--mask", "none.png"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused_in_one_line(
    bundle: toy.Toy,
    picture: Path,
    classes: Path,
    tmp_path: Path,
    monkeypatch: Any,
    arguments: list,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('["sky"]')
    Path("other.txt").write_text("rock\n")
    result = run("segment", "b", "picture.png", *arguments, "--out", "out")
    assert result.exit_code == 2 and words in result.output and not Path("out").exists()
    assert "Traceback" not in result.output
