"""calib_data is what its script writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pixelrt_export.tiny.samples import write_samples


def test_the_pictures_are_small_and_each_has_a_question(samples: list[tuple[Path, str]], root: Path) -> None:
    pictures = {picture for picture, _ in samples}
    assert pictures == set((root / "calib_data").glob("*.png")) and len(samples) == 12
    assert all(picture.stat().st_size < 160_000 for picture in pictures)
    assert samples[0][1] == "Segment the red circle and the blue star."


def test_the_script_draws_them_again(root: Path, tmp_path: Path) -> None:
    write_samples(tmp_path)
    shipped = root / "calib_data"
    for name in ("prompts.jsonl", "classes.txt"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()
    for drawn in sorted(tmp_path.glob("*.png")):
        here, there = (np.asarray(Image.open(folder / drawn.name)) for folder in (tmp_path, shipped))
        assert here.shape == there.shape
        # numpy's and Pillow's rounding may differ by a grey level between versions and machines.
        assert np.abs(here.astype(int) - there).max() <= 2, drawn.name
