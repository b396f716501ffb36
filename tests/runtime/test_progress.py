"""What is said of a long step, and that short ones say nothing."""

from __future__ import annotations

import io

import pytest
from pixelrt.cli.progress import SELDOM, ProgressLine, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(stream: io.StringIO, count: int, seconds: float, total: int) -> str:
    """`count` of `total` things done, one in so many seconds."""
    clock = Clock()
    line = ProgressLine(stream, clock)
    for i in range(1, count + 1):
        clock.now += seconds
        line("layers rounded", i, total)
    return stream.getvalue()


def test_a_terminal_shows_one_line_and_wipes_it() -> None:
    shown = steps(Terminal(), 4, 10, 4)
    assert "\n" not in shown
    assert "\r\x1b[2Klayers rounded: 3 of 4, 10 s left" in shown and shown.endswith("\r\x1b[2K")


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    shown = steps(io.StringIO(), 99, 1, 100)
    assert shown == "".join(f"layers rounded: {n} of 100, {100 - n} s left\n" for n in (30, 60, 90))
    assert SELDOM == 30


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_short_steps_say_nothing(stream: type[io.StringIO]) -> None:
    assert steps(stream(), 10, 0.1, 10) == ""


def test_large_totals_are_parts_and_each_step_has_its_own_time() -> None:
    stream, clock = Terminal(), Clock()
    line = ProgressLine(stream, clock)
    line("questions", 1, 2)
    clock.now += 500
    line("bytes", 1e9, 4e9)
    clock.now += 10
    line("bytes", 2e9, 4e9)
    assert stream.getvalue().endswith("bytes: 50 %, 20 s left")
    line.close()
    line.close()
    assert stream.getvalue().endswith("left\r\x1b[2K")


def test_durations() -> None:
    assert [duration(s) for s in (5, 99, 100, 3000, 11_100)] == [
        "5 s",
        "99 s",
        "2 min",
        "50 min",
        "3 h 05 min",
    ]


def test_checking_a_bundle_counts_its_bytes(golden_bundle_a) -> None:
    import pixelrt

    seen: list[tuple[int, int]] = []
    pixelrt.load(golden_bundle_a, progress=lambda done, total: seen.append((done, total)))
    size = sum(file.stat().st_size for file in golden_bundle_a.iterdir() if file.name != "manifest.json")
    assert seen[-1] == (size, size) and [done for done, _ in seen] == sorted(done for done, _ in seen)
