"""Which built library is used, which is refused, and what runs where there is none."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pixelrt_kernels import build, library, upsample_mask
from pixelrt_kernels.library import HOST, HostLibrary

LOGITS = np.random.default_rng(0).normal(0, 3, (2, 9, 9)).astype(np.float32)
SIZES = (36, (20, 36), (33, 50))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where alone a library is looked for."""
    monkeypatch.setattr(library, "folders", lambda: [tmp_path])
    library.host_library.cache_clear()
    yield tmp_path
    library.host_library.cache_clear()


def test_without_a_library_numpy_runs_with_one_warning(folder: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"is not built.*python -m pixelrt_kernels.build") as caught:
        masks, _, _ = upsample_mask.upsample_mask(LOGITS, *SIZES)
        bits, _, _ = upsample_mask.upsample_bits(LOGITS, *SIZES)
        upsample_mask.label_map(LOGITS, np.ones(2, np.float32), *SIZES)
    assert len(caught) == 1
    assert np.array_equal(np.packbits(masks, axis=2), bits)


def test_the_built_library_is_found_and_used(folder: Path, host_library: HostLibrary) -> None:
    shutil.copy(host_library.path, folder / library.file_name(HOST))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = library.host_library()
        assert used is not None and used.path.parent == folder
        with_library = upsample_mask.upsample_mask(LOGITS, *SIZES)
    without = upsample_mask.reference.upsample_mask(LOGITS, *SIZES)
    assert np.array_equal(with_library[0], without[0]) and np.array_equal(with_library[2], without[2])


def test_other_sources_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = library.file_name(HOST)
    monkeypatch.setitem(library.SOURCES, HOST, library.SOURCES[HOST][:-1])
    assert library.file_name(HOST) != before


def test_a_library_of_other_sources_is_refused(
    folder: Path, host_library: HostLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "source_hash", lambda kind: "0" * 64)
    shutil.copy(host_library.path, folder / library.file_name(HOST))
    with pytest.warns(RuntimeWarning, match="other sources"):
        assert library.host_library() is None


def test_what_is_no_library_is_refused(folder: Path) -> None:
    (folder / library.file_name(HOST)).write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert library.host_library() is None


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(OSError, match="false failed"):
        build.build(HOST, tmp_path)
    assert not list(tmp_path.iterdir())
    assert build.main(["--host", "--folder", str(tmp_path)]) == 1


def test_the_library_before_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if build.compiler(HOST) is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(build, "folders", lambda: [tmp_path])
    name = library.file_name(HOST)
    old, other = tmp_path / (name[:-19] + "0" * 16 + ".so"), tmp_path / "device-1.fatbin"
    old.touch(), other.touch()
    build.build(HOST, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device-1.fatbin", name]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main(["--host", "--folder", str(tmp_path)]) == 1
    assert "host: not built: no C++ compiler found" in capsys.readouterr().err


def test_where_the_package_cannot_be_written_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "folders", lambda: [tmp_path / "file" / "built", tmp_path / "cache"])
    assert build.writable() == tmp_path / "cache"
