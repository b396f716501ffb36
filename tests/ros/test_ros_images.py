"""Every encoding of a camera gives the same picture; what is no picture gets one sentence."""

from __future__ import annotations

import array
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from coloured import HEIGHT, WIDTH, picture
from PIL import Image
from pixelrt.errors import InputError
from pixelrt.ros.images import ENCODINGS, picture_of


def raw(encoding: str, pixels: np.ndarray, padding: int = 0, big: bool = False) -> Any:
    """pixels: (H, W, channels), uint8 or uint16. padding: bytes behind each row."""
    height, width = pixels.shape[:2]
    ordered = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    rows = ordered.reshape(height, -1).view(np.uint8).reshape(height, -1)
    noise = np.random.default_rng(1).integers(0, 256, (height, padding), dtype=np.uint8)
    data = np.concatenate([rows, noise], axis=1)
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=data.shape[1],
        data=array.array("B", data.tobytes()),
    )


def as_encoded(encoding: str, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a camera would send, and what is to be seen."""
    layout = ENCODINGS[encoding]
    sent = np.full((*rgb.shape[:2], layout.channels), 77, np.uint8)
    if layout.channels == 1:
        sent[..., 0], seen = rgb[..., 1], np.repeat(rgb[..., 1:2], 3, axis=2)
    else:
        for channel, place in enumerate(layout.rgb):
            sent[..., place] = rgb[..., channel]
        seen = rgb
    if layout.bytes == 2:
        sent = sent.astype(np.uint16) * 256 + 13
    return sent, seen


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("padding", "big"), [(0, False), (5, False), (6, True)])
def test_encodings_row_strides_and_byte_orders(encoding: str, padding: int, big: bool) -> None:
    sent, seen = as_encoded(encoding, picture(3))
    np.testing.assert_array_equal(picture_of(raw(encoding, sent, padding, big)), seen)


@pytest.mark.parametrize(("encoding", "first"), [("rgb8", [250, 20, 10]), ("bgr8", [10, 20, 250])])
def test_which_byte_is_red(encoding: str, first: list[int]) -> None:
    message = raw(encoding, np.array([[[250, 20, 10]]], np.uint8))
    assert picture_of(message)[0, 0].tolist() == first


def test_the_last_row_may_lack_its_padding() -> None:
    message = raw("rgb8", picture(3), padding=7)
    message.data = message.data[:-7]
    np.testing.assert_array_equal(picture_of(message), picture(3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_compressed(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(3)).save(file, kind)
    message = SimpleNamespace(format=kind.lower(), data=np.frombuffer(file.getvalue(), np.uint8))
    want = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(picture_of(message), want)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoding": "yuv422"}, "encoding 'yuv422', which is not read"),
        ({"height": 0}, f"{WIDTH} x 0"),
        ({"width": 10**6, "height": 10**6}, "1000000 x 1000000"),
        ({"step": 3}, "rows of 3"),
        ({"height": HEIGHT + 1}, f"needs {HEIGHT + 1} rows"),
        ({"data": array.array("B")}, "has 0 bytes"),
    ],
)
def test_bad_raw_images_are_refused(changes: dict[str, Any], says: str) -> None:
    message = raw("rgb8", picture(1))
    vars(message).update(changes)
    with pytest.raises(InputError, match=says):
        picture_of(message)


@pytest.mark.parametrize(
    ("form", "data", "says"),
    [("jpeg", b"no jpeg", "is not a picture"), ("16UC1; compressedDepth png", b"", "depth, not a picture")],
)
def test_bad_compressed_images_are_refused(form: str, data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        picture_of(SimpleNamespace(format=form, data=array.array("B", data)))
