"""Recordings: what is in one, that it can be read again, and that nothing else can be."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import psalm_toy as toy
import pytest
from click.testing import CliRunner
from PIL import Image
from pixelrt import recording_file
from pixelrt.cli import main
from pixelrt.errors import InputError
from pixelrt.recording import Call, Recording, noted, steps

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
HALF = np.arange(60 * 100).reshape(60, 100) % 100 < 50
QUERIES: list[Any] = [
    "the mug",
    pixelrt.Refer(["the mug", "that cup"], several=True, none_below=0.25),
    pixelrt.Classes(["mug", "sky"], "panoptic", ["mug"]),
    pixelrt.Classes(["mug", "sky"], "instance", min_score=0.001),
    pixelrt.Regions(
        points=[(50, 30), HALF], scribbles=[[(1, 2), (30, 40)]], boxes=[(5, 6, 50, 40)], masks=[HALF]
    ),
]


@pytest.fixture
def psalm(tmp_path: Path) -> Any:
    """A PSALM segmenter without a model."""
    model = toy.tiled(tmp_path)
    precision = dict.fromkeys(("encoder", "language", "pixel_decoder"), "fp32")
    model.bundle.manifest |= {
        "name": "toy",
        "precision": precision,
        "files": {"a.onnx": {"sha256": "cd" * 32}},
    }
    return model


@pytest.fixture
def written(psalm: Any, tmp_path: Path) -> Path:
    file = tmp_path / "wrong.npz"
    pixelrt.record(psalm.load(), PICTURE, QUERIES[2], file)
    return file


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: type(query).__name__)
def test_a_recording_is_read_as_it_was_written(psalm: Any, tmp_path: Path, query: Any) -> None:
    segmenter = psalm.load()
    answer = pixelrt.record(segmenter, PICTURE, query, tmp_path / "r.npz")
    found = Recording.read(tmp_path / "r.npz")
    assert np.array_equal(found.picture, PICTURE) and found.about["prompt_ids"] == segmenter.check(query)
    again = segmenter.segment(segmenter.encode(found.picture), found.query)
    for masks in ([mask.mask for mask in again.masks], found.masks):
        assert len(masks) == len(answer.masks)
        assert all(np.array_equal(a, b.mask) for a, b in zip(masks, answer.masks, strict=True))
    assert {graph: len(calls) for graph, calls in found.calls.items()} == {
        "encoder": 1,
        "language": 1,
        "pixel_decoder": 1,
    }
    last = psalm.language.calls[0]
    assert not any(name.startswith("past") for name in found.calls["language"][0].inputs)
    for name, value in found.calls["language"][0].inputs.items():
        assert np.array_equal(value, last[name]) and value.dtype == last[name].dtype
    assert found.about["bundle"] == {
        "sha256": "ab" * 32,
        "name": "toy",
        "family": "psalm",
        "precision": dict.fromkeys(("encoder", "language", "pixel_decoder"), "fp32"),
        "files": {"a.onnx": "cd" * 32},
    }


def test_numpy_alone_reads_it(written: Path) -> None:
    with np.load(written) as file:
        about = json.loads(file["recording.json"])
        call = about["graphs"]["pixel_decoder"]["calls"][0]
        features = file[call["inputs"]["mask_features"]]
        assert features.shape == (1, 1, 32, 32) and file["picture"].dtype == np.uint8
        # A tensor that passes by twice is stored once.
        assert call["inputs"]["mask_features"] == "encoder.0.out.mask_features"
    assert "machine" in about and "numpy" in about["machine"]


def test_a_segmenter_that_does_not_record_is_as_it_was(psalm: Any) -> None:
    segmenter = psalm.load()
    before = dict(vars(segmenter))
    twin, notes = noted(segmenter)
    assert vars(segmenter) == before and segmenter._encoder is psalm.encoder
    segmenter.segment(segmenter.encode(PICTURE), "the mug")
    assert notes.calls == {}
    twin.segment(twin.encode(PICTURE), "the mug")
    assert set(notes.calls) == {"encoder", "language", "pixel_decoder"}


def test_buffers_that_are_used_again_are_copied(psalm: Any) -> None:
    """A backend may give the same array each time, filled anew."""
    buffer = np.zeros((1, 1), np.float32)

    def give(inputs: Any, into: Any) -> dict[str, np.ndarray]:
        buffer[:] += 1
        return {"out": buffer}

    segmenter = psalm.load()
    segmenter._encoder = toy.Graph(give)
    twin, notes = noted(segmenter)
    for _ in range(3):
        twin._encoder({"pixels": buffer})
    assert [float(call.outputs["out"][0, 0]) for call in notes.calls["encoder"]] == [1, 2, 3]
    assert [float(call.inputs["pixels"][0, 0]) for call in notes.calls["encoder"]] == [0, 1, 2]


def test_margins() -> None:
    """The last rows predict the answer's tokens; those before them are of the prompt."""
    first = np.array([[[9, 9, 9], [1, 5, 2]]], np.float32)
    second = np.array([[[0.5, -1, 0.25], [4, 4, 1]]], np.float32)
    calls = {"language": [Call({}, {"logits": rows}) for rows in (first, second)]}
    assert steps(calls, [1, 2, 0]) == [
        {"token": 1, "best": 1, "second": 2, "margin": 3},
        {"token": 2, "best": 0, "second": 2, "margin": 0.25},
        {"token": 0, "best": 0, "second": 1, "margin": 0},
    ]
    assert steps(calls, []) == steps({}, [1]) == []


def test_pixellm(golden_bundle_a: Path, tmp_path: Path) -> None:
    segmenter = pixelrt.load(golden_bundle_a)
    answer = pixelrt.record(segmenter, PICTURE, "What is it?", tmp_path / "r.npz", max_new_tokens=3)
    found = Recording.read(tmp_path / "r.npz")
    assert found.token_ids == answer.token_ids and found.query == "What is it?"
    told = found.about["steps"]
    assert [step["token"] for step in told] == answer.token_ids and told[0]["best"] == told[0]["token"]
    assert found.about["options"] == {"max_new_tokens": 3, "seg_runs": "complete"}
    assert found.about["prompt_ids"] == segmenter.prompt("What is it?").input_ids()


# ---- what is refused ------------------------------------------------------------------------------------


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(file: Path, parts: dict[str, bytes], mode: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", mode) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return file


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def about(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def spoil(parts: dict[str, bytes]) -> None:
        document = json.loads(parts["recording.json"])
        change(document)
        parts["recording.json"] = json.dumps(document).encode()

    return spoil


def replaced(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.update({name: data})


SPOILED: list[tuple[Callable[[dict[str, bytes]], Any], str]] = [
    (lambda parts: parts.pop("recording.json"), "has no one recording.json"),
    (replaced("recording.json", b"{"), "is no recording of pixelrt"),
    (replaced("recording.json", b"[]"), "is no object"),
    (replaced("recording.json", b"[" * 100000), "is no recording of pixelrt"),
    (replaced("../evil.sh", b"rm"), "it holds '../evil.sh'"),
    (replaced("encoder.0.in.pixels.npy", npy(np.array([{}]), allow_pickle=True)), "of type object"),
    (replaced("encoder.0.in.pixels.npy", npy(np.zeros(3, "S4"))), "of type bytes32"),
    (replaced("encoder.0.in.pixels.npy", npy(np.zeros((2, 3)).T)), "of type float64"),
    (replaced("encoder.0.in.pixels.npy", npy(np.zeros(9, np.float32))[:-4]), "was announced"),
    (replaced("encoder.0.in.pixels.npy", b"not an array"), "is no recording of pixelrt"),
    (lambda parts: parts.pop("encoder.0.in.pixels.npy"), "lacks 'encoder.0.in.pixels'"),
    (replaced("picture.npy", npy(np.zeros((3, 3), np.uint8))), "its picture has shape (3, 3)"),
    (about(lambda d: d.update(format=2)), "is a recording of format 2; this pixelrt reads 1"),
    (about(lambda d: d.update(format="1")), "is a recording of format '1'"),
    (about(lambda d: d.pop("bundle")), "recording.json lacks bundle"),
    (about(lambda d: d["query"].update(task="riddle")), "the task is 'riddle'"),
    (about(lambda d: d["query"].update(classes=[])), "no class name was given"),
    (about(lambda d: d["options"].update(max_new_tokens=-1)), "max_new_tokens is -1"),
    (about(lambda d: d["answer"]["masks"][0]["rle"].update(size=[1, 1])), "a mask has size [1, 1]"),
    (about(lambda d: d["answer"]["masks"][0]["rle"].update(counts="!!")), "are not a compressed COCO string"),
    (about(lambda d: d["graphs"].pop("language")), "has no calls of ['language']"),
    (about(lambda d: d["graphs"].update(rogue=d["graphs"]["encoder"])), "has no calls of"),
    (about(lambda d: d["graphs"]["encoder"]["calls"].append({})), "lacks inputs"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED, ids=[said[:24] for _, said in SPOILED])
def test_what_is_no_recording_is_refused(
    written: Path, spoil: Callable[[dict[str, bytes]], Any], sentence: str
) -> None:
    parts = members(written)
    spoil(parts)
    with pytest.raises(InputError) as refused:
        Recording.read(packed(written, parts))
    text = str(refused.value)
    assert sentence in text and str(written) in text and "\n" not in text, text


def test_the_masks_together_are_bounded(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrt import recording

    monkeypatch.setattr(recording, "LARGEST_MASKS", 6000)
    with pytest.raises(InputError, match="2 masks are too many"):
        Recording.read(written)


def test_a_bomb_is_refused_before_it_is_unpacked(written: Path, tmp_path: Path) -> None:
    """The sizes that the list of members announces, and the length of that list, are read first."""
    bomb = packed(tmp_path / "bomb.npz", {**members(written), "a.npy": npy(np.zeros(1 << 24, np.uint8))}, 8)
    data = bytearray(bomb.read_bytes())
    entry = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, entry + 24, 0xFFFF0000)  # what the last member unpacks to
    bomb.write_bytes(data)
    with pytest.raises(InputError, match=r"unpacks to 4,2.* bytes, more than a recording has"):
        Recording.read(bomb)
    many = bytearray(written.read_bytes())
    struct.pack_into("<HH", many, len(many) - 14, 0xFFFF, 0xFFFF)
    bomb.write_bytes(many)
    with pytest.raises(InputError, match="lists more than the 20,000 tensors"):
        Recording.read(bomb)


def test_damaged_files(written: Path, tmp_path: Path) -> None:
    """Cut off anywhere, or with any byte changed, a file is read right or refused; nothing else happens."""
    data, file = written.read_bytes(), tmp_path / "damaged.npz"
    refused = 0
    places = np.random.default_rng(1).integers(0, len(data), 120)
    for number, place in enumerate(places):
        changed = (
            data[:place] if number % 2 else data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
        )
        file.write_bytes(changed)
        try:
            Recording.read(file)
        except InputError as error:
            refused += 1
            assert str(file) in str(error) and "\n" not in str(error)
    assert refused > 100
    for no_file in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"is not a file\. Give one that"):
            Recording.read(no_file)


def test_where_it_cannot_be_written(psalm: Any, written: Path, tmp_path: Path) -> None:
    segmenter = psalm.load()
    mine = tmp_path / "photo.png"
    mine.write_bytes(b"mine")
    for file, sentence in ((mine, "exists and is no recording"), (tmp_path / "a" / "b", "is no folder")):
        psalm.encoder.calls.clear()
        with pytest.raises(InputError, match=sentence):
            pixelrt.record(segmenter, PICTURE, "the mug", file)
        assert not psalm.encoder.calls and mine.read_bytes() == b"mine"
    pixelrt.record(segmenter, PICTURE, "the mug", written)  # over an earlier one
    assert Recording.read(written).query == "the mug"
    for image, query in ((segmenter.encode(PICTURE), "it"), (PICTURE, pixelrt.Track(PICTURE, QUERIES[4]))):
        with pytest.raises(InputError, match="a recording holds one picture, not"):
            pixelrt.record(segmenter, image, query, written)


def test_nothing_is_left_of_one_that_fails(
    psalm: Any, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, names = written.read_bytes(), sorted(tmp_path.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        pixelrt.record(psalm.load(), PICTURE, "the mug", written)
    assert written.read_bytes() == before and sorted(tmp_path.iterdir()) == names
    monkeypatch.setattr(recording_file, "LARGEST", recording_file.LARGEST_ABOUT)
    with pytest.raises(InputError, match="more than"):
        pixelrt.record(psalm.load(), PICTURE, "the mug", written)


# ---- the program, and refusals before a picture is encoded -------------------------------------------------


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    Image.fromarray(PICTURE).save(tmp_path / "p.png")

    def run(segmenter: Any, *arguments: object) -> Any:
        monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", **_: segmenter)
        line = ["segment", "b", tmp_path / "p.png", *arguments, "--out", tmp_path / "out"]
        return CliRunner().invoke(main, [str(argument) for argument in line])

    return run


def test_the_program_records(psalm: Any, program: Callable[..., Any], tmp_path: Path) -> None:
    done = program(psalm.load(), "--task", "interactive", "--point", "50,30", "--record", tmp_path / "r.npz")
    assert done.exit_code == 0 and f"record:  {tmp_path / 'r.npz'}" in done.output, done.output
    assert Recording.read(tmp_path / "r.npz").query.points == (((50, 30),),)
    (tmp_path / "mine").write_text("mine")
    done = program(psalm.load(), "the mug", "--record", tmp_path / "mine")
    assert done.exit_code == 2 and "exists and is no recording" in done.output


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["word " * 30000], "The prompt takes"),
        (["", "--task", "referring"], "is no sentence"),
        (["--task", "interactive", "--point", "500,30"], "lies outside the picture"),
        (["the \udcff mug"], "not valid Unicode"),
    ],
)
def test_psalm_refuses_before_it_encodes(
    psalm: Any,
    program: Callable[..., Any],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    recorded: bool,
) -> None:
    done = program(psalm.load(), *arguments, *(["--record", tmp_path / "r.npz"] if recorded else []))
    assert done.exit_code == 2 and sentence in done.output, done.output
    assert not psalm.encoder.calls and not (tmp_path / "r.npz").exists()


def test_psalm_refuses_a_picture_too(psalm: Any) -> None:
    with pytest.raises(InputError, match="lies outside the picture"):
        psalm.load().segment(PICTURE, pixelrt.Regions(points=[(500, 30)]))
    assert not psalm.encoder.calls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([" "], "The prompt is empty"),
        (["word " * 3000], "this model takes"),
        (["the <image> mug"], "which stands for the picture"),
        (["one [SEG0] alone"], "codebook tokens, which is no multiple of 6"),
        (["the mug", "--task", "referring"], "a pixellm bundle cannot answer a Refer query"),
    ],
)
def test_pixellm_refuses_before_it_encodes(
    golden_bundle_a: Path, program: Callable[..., Any], arguments: list[str], sentence: str
) -> None:
    segmenter: Any = pixelrt.load(golden_bundle_a)
    first = segmenter.prompt.tokenizer.id_to_token(segmenter.codebook.ids[0])
    segmenter._encoder = None  # whose call would fail
    done = program(segmenter, *(argument.replace("[SEG0]", first) for argument in arguments))
    assert done.exit_code == 2 and sentence in done.output, done.output
