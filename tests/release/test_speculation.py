"""Drafted answers are plain decoding's, in fewer forwards; benchmarks/speculation.py counts many more."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pixelrt
import pytest

QUESTIONS = 40


def test_counts(tiny_bundle: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))
    from benchmarks.speculation import asked_in_scenes, measured, result

    segmenter: Any = pixelrt.load(tiny_bundle)
    asked = [question for question in asked_in_scenes(8 * QUESTIONS) if question[0] in ("named", "pair")]
    rows = list(measured(segmenter, islice(asked, QUESTIONS)))
    assert all(row.same_tokens and not row.pixels_different for row in rows)
    found = result(rows)["groups"]
    print({name: found[name] for name in ("all", "named: 1 target")})
    # Forwards are counts, not times: they do not hang on the machine. The first of a wording is learnt from.
    assert found["all"]["saved_per_target"] >= 4
    assert found["named: 1 target"]["drafted_forwards"] < 3
    assert found["named: 1 target"]["in_one_forward"] > 0.3
