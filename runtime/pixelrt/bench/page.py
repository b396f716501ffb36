"""One HTML page of a measurement: tables and plots, nothing loaded from anywhere, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from pixelrt.bench import plot
from pixelrt.bench.comparison import Comparison
from pixelrt.bench.record import Record
from pixelrt.bench.samples import STAGES
from pixelrt.bench.table import (
    WORDS,
    comparison_notes,
    comparison_rows,
    facts,
    header,
    identity,
    number,
    rows,
)

# Okabe and Ito's colours, told apart by colour-blind readers too; greys for what is neither model nor mask.
STAGE_COLOURS = {
    "image": ("#8b929c", "#7d848e"),
    "encode": ("#0072b2", "#3d9bd9"),
    "prefill": ("#d55e00", "#e8772e"),
    "decode": ("#e69f00", "#f0b429"),
    "pixel_decoder": ("#009e73", "#2bbd93"),
    "upsample": ("#b0578d", "#cc79a7"),
    "copies": ("#56b4e9", "#7cc8f2"),
    "other": ("#c3c8cf", "#555c66"),
}
LINES = (("#0072b2", "#4ea8e0"), ("#d55e00", "#f08a4b"), ("#009e73", "#35c79d"), ("#b0578d", "#d68ab5"))
LIGHT = {"paper": "#ffffff", "ink": "#1c2024", "soft": "#5d656e", "rule": "#e2e5e9", "panel": "#f6f7f9",
         "worse": "#c0362c", "better": "#1a7f4e", "on": "#ffffff"}  # fmt: skip
DARK = {"paper": "#14171b", "ink": "#e6e9ed", "soft": "#9aa3ad", "rule": "#2c3239", "panel": "#1b1f24",
        "worse": "#ff7b6e", "better": "#4cc38a", "on": "#0d0f12"}  # fmt: skip
CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:960px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:44px 0 8px}h3{font-size:15px;margin:24px 0 4px}
p{margin:4px 0 12px}.lead,.note{color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:5px 10px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
th{color:var(--soft);font-weight:600}tr.total td{font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 20px;margin:8px 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:12px;margin:20px 0}
.tile{background:var(--panel);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
svg{display:block;width:100%;min-width:640px;height:auto;font-size:12px}
svg text{fill:var(--ink)}svg text.soft{fill:var(--soft)}svg text.on{fill:var(--on)}
.grid{stroke:var(--rule)}.one{stroke:var(--soft);stroke-width:1.5}
.line{fill:none;stroke-width:2}.faint{opacity:.55}
.span{stroke-width:3;stroke-linecap:round}
line.worse{stroke:var(--worse)}line.better{stroke:var(--better)}line.same{stroke:var(--soft)}
circle.worse{fill:var(--worse)}circle.better{fill:var(--better)}circle.same{fill:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin:8px 0}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
@media (max-width:560px){main{padding:20px 14px 40px}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}}
"""


def page(records: Sequence[Record], comparisons: Sequence[Comparison]) -> str:
    """records: measured in one run. comparisons: of the first with each other one, where there are any."""
    title = "pixelrt bench: " + " and ".join(dict.fromkeys(r.about["bundle"]["name"] for r in records))
    about = records[0].about
    # Where the hardware is said once, it is not said again below.
    machine = dict(identity(records[0]))
    lead = f"{machine['processor']} · GPU: {machine['GPU']} · {about['started'][:16].replace('T', ' ')} UTC"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>', _notes(records)]
    if len(records) == 1:
        body.append(_tiles(records[0]))
    body += [
        *_plots(records),
        *(_compared(c) for c in comparisons),
        *(_details(record) for record in records),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_colours()}{CSS}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _colours() -> str:
    def one(theme: dict[str, str], which: int) -> str:
        named = {**theme, **{f"s-{name}": pair[which] for name, pair in STAGE_COLOURS.items()}}
        named |= {f"l{k}": pair[which] for k, pair in enumerate(LINES, start=1)}
        return "".join(f"--{name}:{colour};" for name, colour in named.items())

    rules = "".join(f".s-{name}{{fill:var(--s-{name});background:var(--s-{name})}}" for name in STAGE_COLOURS)
    for k in range(1, len(LINES) + 1):
        rules += f".l{k}{{stroke:var(--l{k})}}.d{k}{{fill:var(--l{k})}}i.d{k}{{background:var(--l{k})}}"
    return f":root{{{one(LIGHT, 0)}}}@media (prefers-color-scheme:dark){{:root{{{one(DARK, 1)}}}}}{rules}"


def _notes(records: Sequence[Record]) -> str:
    """What must be known before any number is believed."""
    about, words = records[0].about, []
    if about["throttling"]["seen"]:
        words.append(f"The machine was throttled: {', '.join(about['throttling']['signs'])}.")
    if words:
        return f'<p class="note"><strong>{escape(" ".join(words))}</strong></p>'
    return ""


def _tiles(record: Record) -> str:
    total, first, token = (record.summary(name) for name in ("total", "first_mask", "decode_token"))
    tiles = []
    if total is not None:
        tiles.append((f"{number(total.percentiles[50])} ms", "an answer, median"))
        if total.percentiles[90] is not None:
            tiles.append((f"{number(total.percentiles[90])} ms", "nine of ten answers within"))
    if first is not None:
        tiles.append((f"{number(first.percentiles[50])} ms", "to the first mask, median"))
    if token is not None:
        tiles.append((f"{number(token.percentiles[50])} ms", "a token after the first, median"))
    tiles.append((number(record.about["forwards_per_answer"]), "language forwards an answer"))
    tiles.append((number(record.about["throughput_per_s"]), "answers a second"))
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(w)}</span></div>' for v, w in tiles)
    return f'<div class="tiles">{cells}</div>'


def _plots(records: Sequence[Record]) -> list[str]:
    names = _short(records)
    used = [stage for stage in STAGES if any(stage in record.columns for record in records)]
    parts = [
        [(stage, float(np.nansum(record.columns[stage])) / len(record.rounds)) for stage in used
         if stage in record.columns]
        for record in records
    ]  # fmt: skip
    stages = "".join(f'<span><i class="s-{stage}"></i>{escape(WORDS[stage])}</span>' for stage in used)
    lines = "".join(f'<span><i class="d{k}"></i>{escape(n)}</span>' for k, n in enumerate(names, start=1))
    lines = f'<div class="legend">{lines}</div>' if len(records) > 1 else ""
    totals = [record.columns["total"] for record in records]
    order = [(_seconds(record), total) for record, total in zip(records, totals, strict=True)]
    count = len(records[0].table("total"))
    asked = len(records[0].about["questions"])
    answers = f"{count * asked:,} answers ({asked} questions, {count:,} rounds)"
    return [
        "<h2>Where the time goes</h2>",
        _note("Mean over all answers; an answer without a stage counts as 0 there."),
        plot.stacked(names, parts),
        f'<div class="legend">{stages}</div>',
        "<h2>How long an answer takes</h2>",
        _note(f"Share of {answers} that were there after so long; dots at 50, 90, 95 and 99 %."),
        plot.cumulative(totals[: len(LINES)]),
        lines,
        "<h2>From the first answer to the last</h2>",
        _note(
            "A rise shows a machine that slows down. Answers beyond 99 % of the others are drawn at the top."
        ),
        plot.timeline(order[: len(LINES)]),
        lines,
    ]


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _seconds(record: Record) -> plot.Floats:
    """When each answer ended, in seconds of answering."""
    seconds: plot.Floats = np.cumsum(record.columns["total"]) / 1e3
    return seconds


def _short(records: Sequence[Record]) -> list[str]:
    names = [record.about["bundle"]["name"] for record in records]
    numbered = [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]
    return [name if len(name) <= 20 else name[:19] + "…" for name in numbered]


def _compared(comparison: Comparison) -> str:
    notes = "".join(map(_note, comparison_notes(comparison)))
    return (
        f"<h2>{escape(comparison.second.title)} against {escape(comparison.first.title)}</h2>"
        f'<p class="note">Ratio of the times; above 1 the second is slower.</p>{plot.intervals(comparison.stages)}'
        f"{_table(*comparison_rows(comparison))}{notes}"
    )


def _details(record: Record) -> str:
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in
                     (*facts(record), *identity(record)))  # fmt: skip
    questions = [
        [f"{q['image']}: {q['words']}", str(q["masks"]), str(q["tokens"] or "–"), str(q["forwards"]),
         number(float(np.median(record.table("total")[:, i])))]
        for i, q in enumerate(record.about["questions"])
    ]  # fmt: skip
    return (
        f"<h2>{escape(record.title)}</h2>{_table(header(), rows(record))}<dl>{listed}</dl>"
        f"<h3>Questions</h3>{_table(['', 'masks', 'tokens', 'forwards', 'median ms'], questions)}"
    )


def _table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in titles)
    lines = "".join(
        f"<tr{' class=total' if row[0] == 'total' else ''}>"
        + "".join(f"<td>{escape(c)}</td>" for c in row)
        + "</tr>"
        for row in body
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
