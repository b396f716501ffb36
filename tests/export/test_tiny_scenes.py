"""Photographs, drawn scenes and clips: where they come from, and that masks and names are true."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixelrt.errors import InputError

pytest.importorskip("scipy", reason="needs the train extra")

from pixelrt_export.tiny import backgrounds
from pixelrt_export.tiny.backgrounds import HELD_OUT, PHOTOGRAPHS, TRAINED
from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.objects import FINE, Pose, covered, finish, outline, paint
from pixelrt_export.tiny.scenes import LEAST_VISIBLE, label_map, scene
from pixelrt_export.tiny.things import COLOURS, SHAPES
from scipy.ndimage import binary_dilation, binary_erosion

# ---- photographs ------------------------------------------------------------------------------------------


def table() -> dict[str, list[str]]:
    lines = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if ".jpg" in line[:30]
    ]
    return {row[0]: row for row in rows}


def test_every_photograph_has_author_source_and_licence() -> None:
    rows = table()
    assert set(rows) == {file.name for file in PHOTOGRAPHS.glob("*.jpg")}
    for name, _, author, source, licence, _ in rows.values():
        assert author and source.split(" `")[0] in ("PyPI", "npm", "Debian"), name
        assert licence in ("CC0", "CC BY 2.0", "CC BY 4.0", "public domain"), name


def test_held_out_photographs_are_not_trained_on() -> None:
    assert not set(HELD_OUT) & set(TRAINED)
    rows = table()
    assert sorted(HELD_OUT) == sorted(name for name, row in rows.items() if row[-1] == "held out")
    assert sorted(TRAINED) == sorted(name for name, row in rows.items() if row[-1] == "training")
    assert len(HELD_OUT) >= len(rows) // 4


def test_photographs_are_small_and_bare() -> None:
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    assert sum(file.stat().st_size for file in files) < 1.5e6
    for file in files:
        with Image.open(file) as image:
            assert max(image.size) <= 360 and not image.getexif() and "icc_profile" not in image.info


# ---- scenes -----------------------------------------------------------------------------------------------


def test_a_seed_is_a_scene() -> None:
    first, again, other = scene(7), scene(7), scene(8)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.things == again.things and first.things != other.things


def test_masks_are_disjoint_visible_and_left_to_right() -> None:
    ratios = []
    for seed in range(60):
        drawn = scene(seed)
        height, width = drawn.labels.shape
        ratios.append(width / height)
        assert drawn.image.shape == (height, width, 3) and drawn.image.dtype == np.uint8
        assert max(height, width) == 140 and 2 <= len(drawn.things) <= 5
        assert set(np.unique(drawn.labels)) == {0} | {t.label for t in drawn.things}
        centres = [t.x for t in drawn.things]
        assert min(np.diff(centres)) >= 5
        for thing in drawn.things:
            rows, columns = np.nonzero(drawn.mask(thing))
            assert len(rows) >= LEAST_VISIBLE * math.pi * thing.radius**2 - 1 and len(rows) >= 120
            assert abs(columns.mean() + 0.5 - thing.x) < 1e-6 and abs(rows.mean() + 0.5 - thing.y) < 1e-6
    assert min(ratios) < 0.65 and max(ratios) > 1.7 and ratios.count(1) > 15


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_that_of_the_outline(shape: str) -> None:
    """Against a point-in-polygon test of every cell, and of the formula's area."""
    pose = Pose(shape, 31.3, 28.6, 14.0, 0.4, tilt=0.9, keystone=0.1)
    cover, points = covered(pose, (60, 64)), pose.outline()
    centres = (np.arange(64 * FINE) + 0.5) / FINE
    x, y = np.meshgrid(centres, centres[: 60 * FINE])
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    slow = inside.reshape(60, FINE, 64, FINE).mean((1, 3)) >= 0.5
    ours = np.zeros((60, 64), bool)
    ours[cover.here] = cover.shown >= 0.5
    # Pillow rounds corners to cells and fills those that the outline only touches.
    assert (slow ^ ours).sum() < 0.06 * ours.sum()
    assert (binary_erosion(slow) <= ours).all() and (ours <= binary_dilation(slow)).all()
    x, y = outline(shape).T
    assert abs(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 - math.pi) < 1e-9
    assert abs(x.mean()) + abs(y.mean()) < 1e-9


def test_a_larger_scene_is_the_same_scene() -> None:
    small, large = scene(3), scene(3, 420)
    assert [t.name for t in small.things] == [t.name for t in large.things]
    for a, b in zip(small.things, large.things, strict=True):
        ours, theirs = small.mask(a), large.mask(b)[1::3, 1::3]
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.85
        assert abs(3 * a.radius / b.radius - 1) < 0.05


def hue(colour: np.ndarray) -> float:
    return colorsys.rgb_to_hsv(*(colour / 255))[0]


def test_colours_are_what_they_are_called() -> None:
    """Of plain things, in whatever light: the named colour is the nearest in hue, by a margin."""
    named = {name: hue(np.array(colour)) for name, colour in COLOURS.items()}
    for seed in range(150):
        drawn = scene(seed)
        for thing in drawn.things:
            if thing.texture == "plain":
                shown = hue(np.median(drawn.image[drawn.mask(thing)], axis=0))
                off = {name: abs((shown - h + 0.5) % 1 - 0.5) for name, h in named.items()}
                nearest, second = sorted(off.values())[:2]
                assert off[thing.colour] == nearest < 0.6 * second, (seed, thing.name, off)


# ---- clips ------------------------------------------------------------------------------------------------


def test_a_clip_shows_the_same_things_moving() -> None:
    left = hidden = came = 0
    for seed in range(12):
        film, again = clip(seed), clip(seed)
        assert len(film.frames) == 8 and all(
            (a.image == b.image).all() for a, b in zip(film.frames, again.frames, strict=True)
        )
        marked = {t.label: t.name for t in film.tracked()}
        assert len(marked) >= 2
        moved = 0.0
        for frame in film.frames:
            assert frame.image.shape[:2] == frame.labels.shape == film.frames[0].labels.shape
            assert {t.label for t in frame.things} == set(np.unique(frame.labels)) - {0}
            for thing in frame.things:
                assert marked.setdefault(thing.label, thing.name) == thing.name
                start = next((t for t in film.tracked() if t.label == thing.label), thing)
                moved = max(moved, math.hypot(thing.x - start.x, thing.y - start.y))
        assert moved > 5
        came += len(marked) > len(film.tracked())
        left += any(t.label not in {s.label for s in film.frames[-1].things} for t in film.tracked())
        first = film.frames[0]
        hidden += any(
            (f.labels == t.label).sum() < 0.7 * first.mask(t).sum() for f in film.frames for t in first.things
        )
    assert left and hidden and came


def test_a_missing_folder_says_where_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "PHOTOGRAPHS", tmp_path)
    with pytest.raises(InputError, match="source checkout"):
        backgrounds.photograph.__wrapped__("stream.jpg")


def test_rounded_corners_take_a_little_and_add_nothing() -> None:
    """Also far from the outline's ends: blurred too close to its canvas's edge, a shape would grow there."""
    for shape in SHAPES:
        sharp, round_ = (Pose(shape, 60.3, 59.8, 32.0, 0.3, rounded=r) for r in (0.0, 0.13))
        masks = np.zeros((2, 120, 120), bool)
        for mask, pose in zip(masks, (sharp, round_), strict=True):
            cover = covered(pose, (120, 120))
            mask[cover.here] = cover.shown >= 0.5
        assert 0.85 < masks[1].sum() / masks[0].sum() <= 1
        grown = masks[1] & ~binary_dilation(masks[0])
        assert (
            grown.sum() < 0.02 * masks[0].sum()
        )  # in the corners of a star and a cross, which fill a little


def test_a_circle_seen_from_the_side_is_an_ellipse() -> None:
    x, y = Pose("circle", 0, 0, 20, 0.5, tilt=0.85, keystone=0.12).outline().T
    terms = np.stack([x * x, x * y, y * y, x, y], axis=-1)
    fitted, *_ = np.linalg.lstsq(terms, np.ones(len(x)), rcond=None)
    np.testing.assert_allclose(terms @ fitted, 1, atol=1e-9)


def test_what_is_out_of_the_picture_leaves_it_alone() -> None:
    surface = finish(np.random.default_rng(0), COLOURS["red"], "striped", True)
    for x in np.arange(-60, 0, 0.5):
        image, pose = np.zeros((30, 30, 3), np.float32), Pose("circle", x, 14, 9.0, 0)
        paint(image, covered(pose, (30, 30)), pose, surface, -1.0, 1.0)
        assert image.any() == (x > -9.5)


def test_the_last_thing_that_covers_half_of_a_pixel_owns_it() -> None:
    poses = [Pose("circle", 14, 12, 9, 0), Pose("star", 22, 15, 9, 0.3), Pose("square", -2, 15, 9, 0.1)]
    covers = [covered(pose, (28, 31)) for pose in poses]
    labels = label_map(covers, (28, 31))
    for (row, column), label in np.ndenumerate(labels):
        owner = 0
        for k, cover in enumerate(covers, start=1):
            rows, columns = cover.here
            if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
                owner = k if cover.shown[row - rows.start, column - columns.start] >= 0.5 else owner
        assert label == owner
    assert np.bincount(labels.ravel(), minlength=4)[1:].min() > 60
    assert covers[2].area > (labels == 3).sum()  # most of it is beyond the frame
