"""The frames of a video: their order, their names, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixelrt.errors import InputError
from pixelrt.frames import read_frames


def paint(path: Path, value: int) -> None:
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path)


def test_a_folder_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for value, name in enumerate(["frame_2.png", "frame_10.PNG", "frame_1.bmp", "frame_010b.png"]):
        paint(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no picture")
    got = [(name, int(picture[0, 0, 0])) for name, picture in read_frames(tmp_path)]
    assert got == [("frame_1", 2), ("frame_2", 0), ("frame_10", 1), ("frame_010b", 3)]


def test_one_picture_is_read_at_a_time(tmp_path: Path) -> None:
    paint(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"damaged")
    frames = read_frames(tmp_path)
    assert next(frames)[0] == "1"
    with pytest.raises(InputError, match=r"2\.png is not a picture"):
        next(frames)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_frames(tmp_path / "none")
    with pytest.raises(InputError, match="holds no pictures"):
        read_frames(tmp_path)
    paint(tmp_path / "1.png", 1)
    paint(tmp_path / "1.bmp", 1)
    with pytest.raises(InputError, match="two pictures named 1"):
        read_frames(tmp_path)


def test_a_video_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'pixelrt\[video\]'"):
        read_frames(tmp_path / "film.mp4")


def test_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the video extra")
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)  # loses nothing
        stream.width, stream.height, stream.pix_fmt = 16, 8, "bgr0"
        for value in (10, 90, 200):
            frame = av.VideoFrame.from_ndarray(np.full((8, 16, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    got = list(read_frames(path))
    assert [name for name, _ in got] == ["00000", "00001", "00002"]
    assert [picture.shape for _, picture in got] == [(8, 16, 3)] * 3
    assert [int(picture.mean()) for _, picture in got] == [10, 90, 200]
    path.write_bytes(b"no video")
    with pytest.raises(InputError, match="is not a video"):
        read_frames(path)


def test_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is no folder; /dev/null stands for one, which no camera's driver answers for."""
    av = pytest.importorskip("av", reason="needs the video extra")
    opened: list[tuple[str, str | None]] = []
    usual = av.open
    monkeypatch.setattr(av, "open", lambda path, format=None: opened.append((path, format)) or usual(path))
    with pytest.raises(InputError, match="/dev/null is not a video"):
        read_frames(Path("/dev/null"))
    assert opened == [("/dev/null", "v4l2")]
