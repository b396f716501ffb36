"""sensor_msgs/Image and CompressedImage -> uint8 RGB (H, W, 3).

A raw row takes `step` bytes, of which the first width * channels * bytes are pixels. Of 16 bits the upper 8 are kept,
as everywhere in pixelrt. Compressed pictures are read by Pillow, as files are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError
from pixelrt.image import PIXEL_LIMIT, Rgb, open_image

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class Layout:
    """Where a pixel's red, green and blue lie among its channels."""

    channels: int
    rgb: tuple[int, int, int]
    bytes: int = 1  # of one channel


GREY, RGB, BGR = (0, 0, 0), (0, 1, 2), (2, 1, 0)
# Names of sensor_msgs/image_encodings.hpp. OpenCV's own (8UC3) say nothing of colours: BGR, as OpenCV has it.
ENCODINGS = {
    "rgb8": Layout(3, RGB),
    "bgr8": Layout(3, BGR),
    "rgba8": Layout(4, RGB),
    "bgra8": Layout(4, BGR),
    "mono8": Layout(1, GREY),
    "8UC1": Layout(1, GREY),
    "8UC3": Layout(3, BGR),
    "8UC4": Layout(4, BGR),
    "rgb16": Layout(3, RGB, 2),
    "bgr16": Layout(3, BGR, 2),
    "rgba16": Layout(4, RGB, 2),
    "bgra16": Layout(4, BGR, 2),
    "mono16": Layout(1, GREY, 2),
    "16UC1": Layout(1, GREY, 2),
    "16UC3": Layout(3, BGR, 2),
    "16UC4": Layout(4, BGR, 2),
}


def picture_of(message: Any) -> Rgb:
    """The picture of an Image or a CompressedImage. Raises InputError for one that cannot be read."""
    return _raw(message) if hasattr(message, "encoding") else _compressed(message)


def _raw(message: Any) -> Rgb:
    height, width, step = int(message.height), int(message.width), int(message.step)
    layout = ENCODINGS.get(str(message.encoding))
    if layout is None:
        raise InputError(
            f"the image has encoding {message.encoding!r}, which is not read. Publish it in one of: "
            f"{', '.join(ENCODINGS)}; or compressed."
        )
    if height < 1 or width < 1 or height * width > PIXEL_LIMIT:
        raise InputError(
            f"the image is {width} x {height}. Publish one of 1 x 1 up to {PIXEL_LIMIT:,} pixels."
        )
    data = np.frombuffer(message.data, np.uint8)
    row = width * layout.channels * layout.bytes
    if step < row or data.size < step * (height - 1) + row:
        raise InputError(
            f"the image has {data.size:,} bytes in rows of {step:,}; {width} x {height} in {message.encoding} needs "
            f"{height} rows of {row:,} or more. Look at the driver that publishes it."
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    pixels = rows.reshape(height, width, layout.channels, layout.bytes)
    # The upper byte is the first of a big-endian number.
    high: NDArray[np.uint8] = pixels[..., 0 if message.is_bigendian else layout.bytes - 1]
    return np.ascontiguousarray(high[..., list(layout.rgb)])


def _compressed(message: Any) -> Rgb:
    if "compressedDepth" in str(message.format):
        raise InputError(
            f"the image has format {message.format!r}: depth, not a picture. Give the topic of a colour image."
        )
    return open_image(bytes(message.data))
