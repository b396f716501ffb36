"""Plots as SVG, in colours that the page names (`--c1` …), so that they follow its light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.comparison import StageChange
from pixelrt.bench.table import WORDS, number

WIDTH, LEFT, RIGHT = 880, 150, 20
BAR, ROW = 30, 26
POINTS_MAX = 2000  # of one plot; more are thinned evenly

Floats = NDArray[np.float64]


def ticks(most: float, wanted: int = 6) -> list[float]:
    """0 and round steps up to `most`: 1, 2 or 5 times a power of ten."""
    raw = max(most, 1e-9) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [step * i for i in range(int(most / step + 1e-9) + 1)]


def stacked(names: Sequence[str], parts: Sequence[Sequence[tuple[str, float]]]) -> str:
    """One bar a name, of (stage, mean ms) in order. Colours by stage."""
    most = max(sum(ms for _, ms in row) for row in parts)
    height = len(names) * (BAR + 14) + 30
    scale = _Scale(most)
    body = scale.grid(height - 30)
    for i, (name, row) in enumerate(zip(names, parts, strict=True)):
        top, at = i * (BAR + 14) + 8, 0.0
        body += _text(LEFT - 10, top + BAR / 2 + 4, name, "end")
        for stage, ms in row:
            x, wide = scale(at), scale(at + ms) - scale(at)
            body += (
                f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{BAR}" class="s-{stage}">'
                f"<title>{escape(WORDS[stage])}: {number(ms)} ms</title></rect>"
            )
            if wide > 44:
                body += _text(x + wide / 2, top + BAR / 2 + 4, number(ms), "middle", "on")
            at += ms
    return _svg(height, body, "Mean time of each stage")


def cumulative(series: Sequence[Floats]) -> str:
    """Share of answers (up) that took at most so many ms (right); a dot at p50, p90, p95, p99."""
    height, top, bottom = 240, 10, 30
    # One late answer would press all others into a corner: the axis ends at the highest p99, which is said.
    most = max(float(np.percentile(values, 99)) for values in series) * 1.02
    scale = _Scale(most)

    def y(share: float) -> float:
        return top + (1 - share) * (height - top - bottom)

    body = scale.grid(height - bottom)
    for share in (0, 0.25, 0.5, 0.75, 1):
        body += (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" class="grid"/>'
        )
        body += _text(LEFT - 10, y(share) + 4, f"{100 * share:.0f} %", "end", "soft")
    for k, values in enumerate(series, start=1):
        ordered = np.sort(values)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        keep = _thinned(len(ordered))
        points = [(scale(0), y(0))]
        for ms, share in zip(ordered[keep], shares[keep], strict=True):
            if ms > most:
                break
            points += [(scale(float(ms)), points[-1][1]), (scale(float(ms)), y(float(share)))]
        body += f'<polyline points="{_points(points)}" class="line l{k}"/>'
        for p in (50, 90, 95, 99):
            ms = float(np.percentile(values, p))
            body += (
                f'<circle cx="{scale(ms):.1f}" cy="{y(p / 100):.1f}" r="4" class="dot d{k}">'
                f"<title>p{p}: {number(ms)} ms</title></circle>"
            )
    return _svg(height, body, "Distribution of the whole answer's time")


def timeline(series: Sequence[tuple[Floats, Floats]]) -> str:
    """Each answer: seconds of answering until its end (right), ms it took (up)."""
    height, top, bottom = 220, 10, 30
    end = max(float(at.max()) for at, _ in series) or 1.0
    most = max(float(np.percentile(ms, 99)) for _, ms in series) * 1.1
    scale = _Scale(end, "s")

    def y(ms: float) -> float:
        return top + (1 - min(ms, most) / most) * (height - top - bottom)

    body = ""
    for tick in ticks(most, 4):
        body += f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>'
        body += _text(LEFT - 10, y(tick) + 4, f"{tick:,g} ms", "end", "soft")
    body += scale.grid(height - bottom)
    for k, (at, ms) in enumerate(series, start=1):
        keep = _thinned(len(ms))
        for a, m in zip(at[keep], ms[keep], strict=True):
            body += (
                f'<circle cx="{scale(float(a)):.1f}" cy="{y(float(m)):.1f}" r="2" class="dot d{k} faint"/>'
            )
    return _svg(height, body, "Time of every answer in the order they were asked")


def intervals(changes: Sequence[StageChange]) -> str:
    """Ratio of each judged stage with its interval; 1 is no change."""
    judged = [change for change in changes if change.ratio is not None]
    low = min([0.9, *(c.ratio.low for c in judged if c.ratio)])
    high = max([1.1, *(c.ratio.high for c in judged if c.ratio)])
    height = len(judged) * ROW + 36

    def x(ratio: float) -> float:  # as much to the left for half as to the right for twice
        span = math.log(high) - math.log(low)
        return LEFT + (math.log(ratio) - math.log(low)) / span * (WIDTH - LEFT - RIGHT - 150)

    body = ""
    for ratio in _ratio_ticks(low, high):
        kind = "one" if ratio == 1 else "grid"
        body += f'<line x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="4" y2="{height - 28}" class="{kind}"/>'
        body += _text(x(ratio), height - 10, f"{ratio:g}", "middle", "soft")
    for i, change in enumerate(judged):
        assert change.ratio is not None
        middle = i * ROW + 18
        kind = {"slower": "worse", "faster": "better"}.get(change.words, "same")
        a, b, c = x(change.ratio.low), x(change.ratio.high), x(change.ratio.value)
        body += _text(LEFT - 10, middle + 4, WORDS[change.stage], "end")
        body += f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{middle}" y2="{middle}" class="span {kind}"/>'
        body += f'<circle cx="{c:.1f}" cy="{middle}" r="5" class="{kind}"/>'
        words = f"× {change.ratio.value:.3f}  {change.words}"
        body += _text(WIDTH - 150, middle + 4, words, "start", "soft")
    return _svg(height, body, "Ratio of each stage's time with its interval")


class _Scale:
    """From 0..most to pixels."""

    def __init__(self, most: float, unit: str = "ms") -> None:
        self.most, self.unit = most, unit

    def __call__(self, value: float) -> float:
        return LEFT + value / self.most * (WIDTH - LEFT - RIGHT)

    def grid(self, bottom: float) -> str:
        """Vertical lines and their numbers; the unit at the last one."""
        body, found = "", ticks(self.most)
        for tick in found:
            words = f"{tick:,g}" + (f" {self.unit}" if tick == found[-1] else "")
            body += f'<line x1="{self(tick):.1f}" x2="{self(tick):.1f}" y1="4" y2="{bottom}" class="grid"/>'
            body += _text(self(tick), bottom + 18, words, "middle", "soft")
        return body


def _ratio_ticks(low: float, high: float) -> list[float]:
    if high / low < 1.6:
        steps = [i / 20 for i in range(10, 41)]
    else:
        steps = [0.1, 0.2, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50]
    return [ratio for ratio in steps if low <= ratio <= high]


def _thinned(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS_MAX)).astype(np.int64))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def _svg(height: float, body: str, title: str) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg></div>"
    )
