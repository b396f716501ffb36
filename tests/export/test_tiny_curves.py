"""Curves of a training log: round ticks, and a picture even where a figure is missing or not finite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixelrt_export.tiny.curves import HEIGHT, LINE, WIDTH, panel, ticks, write_curves


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 3.4, [0, 1, 2, 3]),
        (20, 6899, [2000, 4000, 6000]),
        (-0.5, 0.5, [-0.5, 0, 0.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    np.testing.assert_allclose(ticks(low, high), wanted, atol=1e-12)


def test_a_falling_figure_is_drawn_falling() -> None:
    image = np.asarray(panel("loss", [(step, 100 - step) for step in range(100)]))
    rows, columns = np.nonzero((image == LINE).all(-1))
    assert rows[columns < WIDTH // 3].mean() < rows[columns > WIDTH * 2 // 3].mean() - HEIGHT / 4


def test_a_log_becomes_panels(tmp_path: Path) -> None:
    lines = [{"step": 20 * k, "progress": k / 50, "loss": 9 / (k + 1), "named": 0.5} for k in range(50)]
    lines[3]["loss"] = float("nan")
    for line in lines[:30]:
        del line["named"]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as page:
        assert page.size == (3 * WIDTH, HEIGHT)
    (tmp_path / "log.jsonl").write_text(json.dumps(lines[0]) + "\n")  # one line: nothing to draw yet
    write_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".new"] == []


def test_a_step_that_was_logged_twice_counts_once(tmp_path: Path) -> None:
    """A run that was stopped and resumed goes through some steps again."""
    once = [(20, 3.0), (40, 2.0), (60, 1.0)]
    again = [(20, 9.0), (20, 3.0), (60, 5.0), (40, 2.0), (60, 1.0)]
    assert panel("loss", again).tobytes() == panel("loss", once).tobytes()
    panel("loss", [(20, 1.0), (20, 2.0)])
