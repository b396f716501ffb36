"""Pictures: anything a caller has -> uint8 RGB (H, W, 3) -> the tensor and masks the encoder graph takes.

Source of the numbers: PixelLM, `chat.py --pad_train_clip_images`, `ResizeLongestSide` and `llava_arch.py`.
`cv2.imread` made the original's arrays: orientation tags applied, alpha dropped, the upper 8 of 16 bits kept.
"""

from __future__ import annotations

import errno
import io
import math
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pixelrt.errors import InputError

PIXEL_LIMIT = 8192 * 8192
# Readers that need no other program and run no script (EPS would start Ghostscript).
# AVIF last: Pillow before 11.3 does not know it and stops there.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# What is in 16 bits: Pillow's I;16, and its I (32 bits) where a reader of these puts 0..65535 there.
FORMATS_16_IN_I = ("PNG", "PPM")
# EXIF orientation -> what makes the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(UPRIGHT[tag] for tag in (5, 6, 7, 8))

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
Rgb = NDArray[np.uint8]

# Silencing Pillow's warnings changes interpreter-wide state, which two decoding threads would leave changed.
_decoding = threading.Lock()


def open_image(source: Source) -> Rgb:
    """The picture as uint8 RGB (H, W, 3), upright, in memory of its own.

    `source` is a path, the bytes of a file, an open binary file, a PIL image, or a uint8 array (H, W),
    (H, W, 3) RGB or (H, W, 4) RGBA. Of an animation the first frame is taken.

    Raises:
        InputError: not a picture, damaged, above PIXEL_LIMIT pixels, or an array of another type or shape.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _decoded(source, "the PIL image")
        stream, name = _stream(source)
        with stream:
            return _decoded(_opened(stream, name), name)


def announced_size(data: bytes) -> tuple[int, int]:
    """H, W of the upright picture in the bytes of a file, by its header; no pixel is decoded. Raises InputError."""
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream, name = _stream(data)
        with stream:
            picture = _opened(stream, name)
            _check_size(picture.width, picture.height, name)
            # Of a PNG without the tag in its header Pillow would decode all of it to look for one behind.
            told = picture.format != "PNG" or "exif" in picture.info
            turn = _turn(picture) if told else None
    # Of a TIFF the size as stored: newer versions of Pillow turn the one they tell before they decode.
    stored = getattr(picture, "tag_v2", {})
    size = (
        stored.get(ExifTags.Base.ImageLength, picture.height),
        stored.get(ExifTags.Base.ImageWidth, picture.width),
    )
    return size[::-1] if turn in SIDEWAYS else size


def _opened(stream: BinaryIO, name: str) -> Image.Image:
    """The picture with its header read alone."""
    try:
        return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError(
            f"{name} has far more than the {PIXEL_LIMIT:,} pixels allowed. Scale it down."
        ) from None
    except Exception:
        raise InputError(
            f"{name} is not a picture that can be read. Give a PNG, JPEG, WebP or TIFF."
        ) from None


def _stream(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
) -> tuple[BinaryIO, str]:
    """A seekable stream of our own, and what to call it in an error."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), f"the picture of {len(source):,} bytes"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            if not path.is_file():
                what = "is not a file" if path.exists() else "does not exist"
                raise InputError(f"{path} {what}. Give the path of a picture.")
            return path.open("rb"), str(path)
        except OSError as error:
            text = str(path)
            name = f"a path of {len(text):,} characters" if error.errno == errno.ENAMETOOLONG else text
            raise InputError(
                f"{name} cannot be read: {error.strerror}. Give the path of a picture."
            ) from None
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise InputError("the picture's file is open as text. Open it with mode 'rb'.")
        return io.BytesIO(data), str(getattr(source, "name", "the open file"))
    raise InputError(
        f"a picture cannot be a {type(source).__name__}. Give a path, bytes, a PIL image or a uint8 array."
    )


def _decoded(picture: Image.Image, name: str) -> Rgb:
    _check_size(picture.width, picture.height, name)
    mode = picture.mode
    sixteen = mode.startswith("I;16") or (mode == "I" and picture.format in FORMATS_16_IN_I)
    if mode == "F" or (mode == "I" and not sixteen):
        what = "floating-point" if mode == "F" else "32-bit"
        raise InputError(f"{name} holds {what} values. Save it with 8 bits a channel.")
    try:
        picture.load()
        turn = _turn(picture)
        upright = picture if turn is None else picture.transpose(turn)
        if sixteen:
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(upright.convert("RGB"))
    except Exception:
        raise InputError(f"{name} is a damaged or truncated picture. Save or download it again.") from None


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes a loaded picture upright; None where it is, or where no orientation can be read."""
    # Not ImageOps.exif_transpose: it writes the tags anew, and fails where another one is bad.
    try:
        return UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def _from_array(array: NDArray[Any]) -> Rgb:
    if array.dtype != np.uint8:
        raise InputError(f"the picture array is {array.dtype}, not uint8. Scale it to 0..255 and convert it.")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(f"the picture array has shape {array.shape}, not (H, W), (H, W, 3) or (H, W, 4).")
    _check_size(array.shape[1], array.shape[0], "the picture array")
    # A copy: the caller may fill the array with the next frame of a camera.
    return np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else np.array(array[..., :3], order="C")


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name} is empty ({width} x {height} pixels). Give a picture of at least 1 x 1.")
    if width * height > PIXEL_LIMIT:
        raise InputError(
            f"{name} has {width} x {height} pixels, more than the {PIXEL_LIMIT:,} allowed. Scale it down."
        )


@dataclass(frozen=True)
class ImageSpec:
    """How the encoder wants pictures (the `image` entry of a manifest). Mean and std on the 0..255 scale."""

    size: int  # S: side of the square input
    patch: int  # side of one patch; G = S / patch patches a side, G even
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)  # what the padding holds, after normalisation

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ImageSpec:
        """Raises InputError where a value is missing, unknown or impossible."""
        names = [field.name for field in fields(cls)]
        if set(entry) | {"fill"} != set(names):
            raise InputError(
                f"the manifest's image entry has {sorted(entry)}, not {sorted(names)}. Export it again."
            )
        size, patch = entry["size"], entry["patch"]
        if type(size) is not int or type(patch) is not int or patch < 1 or size < 1 or size % (2 * patch):
            raise InputError(
                f"the manifest's image size {size!r} is not a multiple of twice its patch {patch!r}."
            )
        fill = entry.get("fill", cls.fill)
        for name, values in (("mean", entry["mean"]), ("std", entry["std"]), ("fill", fill)):
            numbers = isinstance(values, list | tuple) and all(
                type(v) in (int, float) and math.isfinite(v) for v in values
            )
            if not numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
                raise InputError(
                    f"the manifest's image {name} is {values!r}, not three numbers (std above 0)."
                )
        mean, std, fill = (tuple(map(float, three)) for three in (entry["mean"], entry["std"], fill))
        return cls(size, patch, mean, std, fill)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture as the graphs take it; G = size / patch."""

    pixels: NDArray[np.float32]  # (1, 3, S, S), normalised, `fill` to the right of and below the content
    patch_valid: NDArray[np.bool_]  # (1, 1 + G*G), index 0 the class token, then patches row by row
    token_valid: NDArray[np.bool_]  # ((G/2)**2,), image tokens of the language model row by row
    content: tuple[int, int]  # (h', w') of the picture inside the square
    original: tuple[int, int]  # (H, W)


def prepare(image: Rgb, spec: ImageSpec) -> Prepared:
    """Long side to `size` (Pillow bilinear, uint8), then (x - mean) / std, then `fill` to a square.

    A patch or token is valid where its top-left pixel lies in the content (the original: "nearest").
    """
    height, width = image.shape[:2]
    scale = spec.size / max(height, width)
    # A long thin strip keeps one row; the original would fail there.
    content = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    small = Image.fromarray(image).resize((content[1], content[0]), Image.Resampling.BILINEAR)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    fill = np.array(spec.fill, np.float32)[:, None, None]
    pixels = np.broadcast_to(fill, (1, 3, spec.size, spec.size)).copy()
    normalised = (np.asarray(small, np.float32) - mean) / std  # (h', w', 3)
    pixels[0, :, : content[0], : content[1]] = normalised.transpose(2, 0, 1)
    patches = _inside(content, spec.patch, spec.size // spec.patch)
    tokens = _inside(content, 2 * spec.patch, spec.size // (2 * spec.patch))
    return Prepared(pixels, np.concatenate([[True], patches])[None], tokens, content, (height, width))


def _inside(content: tuple[int, int], step: int, count: int) -> NDArray[np.bool_]:
    """(count * count,): whether the corner of each cell of `step` pixels lies inside the content."""
    corner = np.arange(count) * step
    return np.logical_and.outer(corner < content[0], corner < content[1]).ravel()
