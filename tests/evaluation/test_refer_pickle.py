"""RefCOCO is published as a pickle: plain values are read, and nothing is ever called."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.evaluation import refer_file

from tests.evaluation import miniature as mini

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")


class Evil:
    def __reduce__(self) -> Any:
        return print, ("arbitrary code",)


def test_a_pickle_that_calls_functions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "refs(unc).p"
    for value in (Evil(), [{"sentences": Evil()}], np.zeros(2), io.BytesIO):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file.write_bytes(pickle.dumps(value, protocol))
            with pytest.raises(InputError, match="plain values only"):
                refer_file.read_refs(file)
    assert "arbitrary" not in capsys.readouterr().out


def test_both_pythons_pickles_are_read(tmp_path: Path) -> None:
    file, value = (
        tmp_path / "r.p",
        [{"sent": "a man's hat", "ref_id": 3, "sentences": ["café", "b\n"], "x": []}],
    )
    for data in (mini.python2_pickle(value), *(pickle.dumps(value, p) for p in range(6))):
        file.write_bytes(data)
        assert refer_file.read_refs(file) == value
    for damaged in (b"", b"I1", data[:-4], b"\x80\x7f", b"no pickle at all"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"r\.p is not a file of references"):
            refer_file.read_refs(file)
