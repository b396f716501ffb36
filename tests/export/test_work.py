"""The work folder of an export: what its journal is believed, and how much is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from pixelrt_export import work
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.weight_file import TENSOR, WeightFile, packed, unpacked
from pixelrt_export.work import Work, checksum_of, work_on

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"


def test_a_journal_holds_what_was_written(tmp_path: Path) -> None:
    with work_on(tmp_path / "b") as place:
        assert place.begin({"a": 1}) is None
        with WeightFile(place.bundle / "w", work=place) as file:
            file.put("x", "float16", lambda: np.arange(6.0).reshape(2, 3))
            file.put("q", "int4", lambda: np.arange(-8, 8, dtype=np.int8).reshape(4, 4))
        again = Work(place.folder)
        assert again.begin({"a": 1}) == "" and list(again.done) == ["job", f"{TENSOR}x", f"{TENSOR}q"]
        with WeightFile(place.bundle / "w", work=again) as file:
            assert file.read("x").tolist() == [[0, 1, 2], [3, 4, 5]]
            np.testing.assert_array_equal(file.read("q"), np.arange(-8, 8).reshape(4, 4))
        assert again.begin({"a": 2}) == "a changed" and not list(again.bundle.iterdir())
    values = np.random.default_rng(0).integers(-8, 8, (6, 4)).astype(np.int8)
    np.testing.assert_array_equal(unpacked(packed(values), values.shape), values)


def test_arrays_are_kept_within_their_share(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(1000, np.float32)}
    with work_on(tmp_path / "b") as place:
        place.begin({})
        for step, written in ((0, 1000), (1, 40_000), (2, 40_000), (3, 80_000)):
            place.keep_arrays(step, lambda: arrays, 4000, written)
        assert place.done[work.ARRAYS]["step"] == 3 and len(list(place.folder.glob("arrays-*"))) == 1
        kept = place.kept_arrays()
        assert kept is not None and kept[0] == 3 and kept[1]["a"].shape == (1000,)
        file = place.folder / "arrays-3.npz"
        assert checksum_of(file)[0] == file.stat().st_size
        os.truncate(file, 100)
        assert place.kept_arrays() is None


def test_disk_written(tmp_path: Path) -> None:
    """At most 1.2 times the bundle passes through write(): nothing is written twice, little is kept to resume from."""

    def written() -> int:
        return next(
            int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "wchar" in line
        )

    calib = tmp_path / "calib"
    calib.mkdir()
    shutil.copy(ROOT / "calib_data" / "scene_01.png", calib)
    before, kept = written(), []
    original = np.savez
    try:
        np.savez = lambda *a, **k: kept.append(original(*a, **k))
        bundle = export_bundle(TINY, tmp_path / "b", precision="int4", settings=Settings(calib=calib))
    finally:
        np.savez = original
    size = sum(file.stat().st_size for file in bundle.iterdir())
    assert kept and written() - before <= 1.2 * size, (len(kept), (written() - before) / size)
