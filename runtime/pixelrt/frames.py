"""The pictures of a video: a folder of them, or a video file or a camera where PyAV is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.errors import InputError, MissingExtra
from pixelrt.image import Rgb, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


def read_frames(source: Path) -> Iterator[tuple[str, Rgb]]:
    """(name, picture) of every frame in order; of a camera (Linux: /dev/video0) without end. Raises InputError where
    there is none."""
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a folder of pictures, a video file or a camera.")
    return _from_folder(source) if source.is_dir() else _from_video(source)


def _from_folder(folder: Path) -> Iterator[tuple[str, Rgb]]:
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES), key=_number_then_name)
    if not files:
        raise InputError(f"{folder} holds no pictures. Give the folder of the frames (PNG, JPEG, …).")
    stems = [file.stem for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"{folder} holds two pictures named {twice}. Keep one of them.")
    return ((file.stem, open_image(file)) for file in files)


def _number_then_name(file: Path) -> tuple[Any, ...]:
    """frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", file.stem)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _from_video(file: Path) -> Iterator[tuple[str, Rgb]]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra("PyAV, which reads video files,", "video") from error
    try:
        container = av.open(str(file), format="v4l2" if file.is_char_device() else None)
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError):
        raise InputError(
            f"{file} is not a video that can be read. Give another, or a folder of frames."
        ) from None

    def decoded() -> Iterator[tuple[str, Rgb]]:
        with container:
            try:
                for number, frame in enumerate(container.decode(stream)):
                    yield f"{number:05d}", np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            except av.FFmpegError as error:
                raise InputError(f"{file} is damaged ({error}). Save it again.") from None

    return decoded()
