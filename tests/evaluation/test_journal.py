"""What was answered survives a kill at any byte, and is never taken for an answer to something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pixelrt.errors import InputError
from pixelrt.evaluation.journal import Journal

ABOUT = {"bundle": "a", "way of asking": "words"}


def test_cut_off_at_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    with Journal(file, ABOUT) as journal:
        for k in range(3):
            journal.add(f"é {k}", {"value": k / 3})
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        with Journal(file, ABOUT) as journal:
            kept = max(0, sum(end <= cut for end in ends) - 1)
            assert journal.records == {f"é {k}": {"value": k / 3} for k in range(kept)}
            for k in range(kept, 3):
                journal.add(f"é {k}", {"value": k / 3})
        assert file.read_bytes() == whole


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "new" / "j.jsonl"
    with Journal(file, ABOUT) as journal:
        journal.add("1", [1])
        with pytest.raises(InputError, match="being written by another run"):
            Journal(file, ABOUT)
    with pytest.raises(InputError, match="made with another bundle"):
        Journal(file, {**ABOUT, "bundle": "b"})
    with pytest.raises(InputError, match="made with another way of asking"):
        Journal(file, {**ABOUT, "way of asking": "signs"})
    for text in ("3\n", "x\n", json.dumps({"pixelrt_eval": 0}) + "\n", "[]\n{}\n"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"not a journal|another"):
            Journal(file, ABOUT)
    assert file.read_text() == "[]\n{}\n"  # what is not ours stays
    file.write_text("no newline, so all of it is an unfinished line")
    with pytest.raises(InputError, match="not a journal"):
        Journal(file, ABOUT)
