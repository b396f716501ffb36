"""Opening pictures and preparing them for the encoder."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt import image as image_module
from pixelrt.errors import InputError
from pixelrt.image import ImageSpec, open_image, prepare

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SPEC = ImageSpec(448, 14, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


PNG = encoded(Image.fromarray(RGB))


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    alpha = np.dstack([RGB, np.zeros((5, 7), np.uint8)])
    sources: list[Any] = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG)]
    sources += [Image.open(path), Image.fromarray(RGB), RGB, alpha, RGB[::-1][::-1]]
    with path.open("rb") as stream:
        for source in [*sources, stream]:
            got = open_image(source)
            assert got.dtype == np.uint8 and got.flags.c_contiguous
            assert np.array_equal(got, RGB)
    assert np.array_equal(open_image(GREY), np.dstack([GREY] * 3))


def test_modes() -> None:
    three = np.dstack([GREY] * 3)
    sixteen = Image.fromarray(GREY.astype(np.uint16) * 256 + 255)
    assert np.array_equal(open_image(encoded(sixteen)), three)
    assert np.array_equal(open_image(encoded(Image.fromarray(GREY))), three)
    assert np.array_equal(open_image(encoded(Image.fromarray(RGB).convert("RGBA"))), RGB)
    black_white = Image.fromarray(GREY > 127)
    assert np.array_equal(open_image(encoded(black_white)), (three > 127) * np.uint8(255))
    palette = Image.fromarray(RGB).quantize(8)
    wanted = np.asarray(palette.convert("RGB"))
    assert np.array_equal(open_image(encoded(palette)), wanted)
    # A palette with a transparency table: Pillow would warn.
    assert np.array_equal(open_image(encoded(palette, transparency=bytes(range(8)))), wanted)
    assert open_image(encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF")).shape == (5, 7, 3)
    for kind in ("BMP", "GIF", "JPEG", "MPO", "PPM", "TIFF", "WEBP"):
        assert open_image(encoded(Image.fromarray(RGB), kind)).shape == (5, 7, 3), kind
    with pytest.raises(InputError, match="floating"):
        open_image(Image.fromarray(GREY.astype(np.float32)))


def test_sixteen_bits_and_other_integers() -> None:
    """16 bits become their upper 8; of any other integer nobody can say what is white."""
    three, wide = np.dstack([GREY] * 3), Image.fromarray(GREY.astype(np.uint16) * 256 + 255)
    for kind in ("PNG", "PPM", "TIFF"):
        assert np.array_equal(open_image(encoded(wide, kind)), three), kind
    old = Image.fromarray(GREY.astype(np.int32) * 256 + 255)  # what Pillow 10 makes of a PNG
    old.format = "PNG"
    assert np.array_equal(open_image(old), three)
    small = Image.fromarray(GREY.astype(np.int32))
    for source in (small, encoded(small, "TIFF")):
        with pytest.raises(InputError, match="32-bit"):
            open_image(source)


def test_array_is_copied() -> None:
    for array in (RGB.copy(), GREY.copy(), np.dstack([RGB, GREY])):
        got = open_image(array)
        before = got.copy()
        array[:] = 255 - array
        assert np.array_equal(got, before)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
     (5, lambda x: x.transpose(1, 0, 2)), (6, lambda x: np.rot90(x, -1)),
     (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)), (8, np.rot90), (0, lambda x: x), (9, lambda x: x)],
)  # fmt: skip
def test_orientation_tag_is_applied(orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):  # Pillow turns a TIFF itself
        assert np.array_equal(open_image(encoded(Image.fromarray(RGB), kind, exif=exif)), turn(RGB)), kind


def test_other_tags_may_be_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(RGB), exif=exif)

    def tobytes(*_: object) -> bytes:
        raise struct.error("a tag that cannot be written")

    monkeypatch.setattr(Image.Exif, "tobytes", tobytes)
    assert np.array_equal(open_image(turned), np.rot90(RGB, -1))
    for nonsense in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense"):
        data = encoded(Image.fromarray(RGB), "JPEG", exif=nonsense)
        assert open_image(data).shape == RGB.shape


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


BAD: list[tuple[Any, str]] = [
    (b"", "not a picture"),
    (b"hello", "not a picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    (PNG[: len(PNG) // 2], "truncated"),
    (PNG[:30], "not a picture|truncated"),
    (encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")[:900], "truncated"),
    (png_header(8193, 8192), "67,108,864"),
    (png_header(12000, 12000), "67,108,864"),  # Pillow warns here
    (png_header(60000, 60000), "67,108,864"),  # and raises here
    (png_header(0, 5), "empty|not a picture"),
    (np.zeros((0, 7, 3), np.uint8), "empty"),
    (np.zeros((5, 7), np.float32), "float32"),
    (np.zeros((5, 7, 2), np.uint8), "shape"),
    (np.zeros((1, 5, 7, 3), np.uint8), "shape"),
    (np.broadcast_to(np.uint8(0), (8193, 8192)), "67,108,864"),
    (None, "NoneType"),
    (7, "int"),
    (io.StringIO("text"), "'rb'"),
    (Image.new("RGB", (0, 4)), "empty"),
]


@pytest.mark.parametrize(("source", "words"), BAD)
def test_bad_pictures_get_one_sentence(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is not a file"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="a path of 300 characters cannot be read"):
        open_image("Segment " + "x" * 292)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is not a picture"):
        open_image(tmp_path / "notes.txt")


def test_largest_allowed_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "PIXEL_LIMIT", 35)
    assert open_image(PNG).shape == (5, 7, 3)
    monkeypatch.setattr(image_module, "PIXEL_LIMIT", 34)
    with pytest.raises(InputError, match="34"):
        open_image(PNG)


@pytest.mark.parametrize("name", ["land", "port", "square"])
def test_prepare_equals_the_original(golden_pixellm: Path, name: str) -> None:
    golden = np.load(golden_pixellm / "preprocess.npz")
    got = prepare(golden[f"{name}.rgb_uint8"], SPEC)
    resized = golden[f"{name}.resized_uint8"]
    assert got.content == resized.shape[:2] and got.original == golden[f"{name}.rgb_uint8"].shape[:2]
    assert got.pixels.shape == (1, 3, 448, 448) and got.pixels.dtype == np.float32
    # The original computes in float32 too; one rounding of a value below 4.
    np.testing.assert_allclose(
        got.pixels[:, :, ::16, ::16], golden[f"{name}.image_clip_hw::16"], rtol=0, atol=5e-7
    )
    height, width = got.content
    mean, std = np.array(SPEC.mean)[:, None, None], np.array(SPEC.std)[:, None, None]
    back = got.pixels[0, :, :height, :width] * std + mean
    assert np.array_equal(np.round(back).astype(np.uint8), resized.transpose(2, 0, 1))
    assert not got.pixels[:, :, height:].any() and not got.pixels[:, :, :, width:].any()


@pytest.mark.parametrize(("size", "patch"), [(448, 14), (140, 14), (56, 14), (32, 8)])
@pytest.mark.parametrize("shape", [(60, 96), (96, 61), (64, 64), (1, 1), (1, 3000), (3000, 1), (33, 7)])
def test_validity_follows_nearest_resizing(size: int, patch: int, shape: tuple[int, int]) -> None:
    got = prepare(np.zeros((*shape, 3), np.uint8), ImageSpec(size, patch, SPEC.mean, SPEC.std))
    assert max(got.content) == size and min(got.content) >= 1
    inside = np.zeros((size, size), bool)
    inside[: got.content[0], : got.content[1]] = True
    patches = inside[::patch, ::patch]
    assert got.patch_valid.shape == (1, 1 + patches.size) and got.patch_valid[0, 0]
    assert np.array_equal(got.patch_valid[0, 1:], patches.ravel())
    assert np.array_equal(got.token_valid, patches[::2, ::2].ravel())


@pytest.mark.parametrize(
    ("shape", "content"), [((101, 151), (300, 448)), ((151, 101), (448, 300)), ((480, 640), (336, 448))]
)
def test_sides_are_rounded_to_nearest(shape: tuple[int, int], content: tuple[int, int]) -> None:
    assert prepare(np.zeros((*shape, 3), np.uint8), SPEC).content == content


def test_validity_equals_the_original(golden_pixellm: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    for case, image in [("two_targets", "land"), ("one_target_eos", "port"), ("zero", "square")]:
        mask = load_file(golden_pixellm / f"case_{case}.safetensors")["lm_attention_mask"][0]
        got = prepare(np.load(golden_pixellm / "preprocess.npz")[f"{image}.rgb_uint8"], SPEC)
        windows = np.lib.stride_tricks.sliding_window_view(mask, 256)
        assert (windows == got.token_valid).all(1).any()
        assert (mask == 0).sum() == (~got.token_valid).sum()


@pytest.mark.parametrize(
    "change",
    [
        *({"size": value} for value in (450, 14, 0, "448", True, None)),
        *({"patch": value} for value in (0, -14, 14.0)),
        *({"mean": value} for value in ([1, 2], "abc", [1, 2, "x"])),
        *({"std": value} for value in ([1, 0, 1], [1, 1, float("inf")], None)),
        {"mean": [1, 2, float("nan")]},
        *({"fill": value} for value in (0, [0, 0], [0, 0, None])),
        {"resample": "bicubic"},
    ],
)
def test_spec_refuses(change: dict[str, Any]) -> None:
    entry = {"size": 448, "patch": 14, "mean": [1, 2, 3], "std": [4, 5, 6]}
    assert ImageSpec.from_dict(entry) == ImageSpec(448, 14, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    with pytest.raises(InputError, match="manifest"):
        ImageSpec.from_dict(entry | change)
    with pytest.raises(InputError, match="manifest"):
        ImageSpec.from_dict({"size": 448})


def test_padding_holds_the_fill() -> None:
    """Left out it is 0; three numbers, which may be negative, are put into the padding as they are."""
    entry = {"size": 448, "patch": 14, "mean": [1, 2, 3], "std": [4, 5, 6], "fill": [-1, 0, 2.5]}
    spec = ImageSpec.from_dict(entry)
    assert spec.fill == (-1.0, 0.0, 2.5) and ImageSpec(448, 14, SPEC.mean, SPEC.std).fill == (0, 0, 0)
    picture = np.full((60, 96, 3), 9, np.uint8)
    got, plain = (
        prepare(picture, spec).pixels,
        prepare(picture, ImageSpec(448, 14, spec.mean, spec.std)).pixels,
    )
    assert np.array_equal(got[:, :, :280], plain[:, :, :280]) and not plain[:, :, 280:].any()
    assert np.array_equal(
        got[0, :, 280:].transpose(1, 2, 0), np.broadcast_to(np.float32(spec.fill), (168, 448, 3))
    )
