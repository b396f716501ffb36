"""Measurements as Markdown: for a terminal, and for a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pixelrt.bench.comparison import Comparison
from pixelrt.bench.record import Record
from pixelrt.bench.samples import COLUMNS
from pixelrt.bench.statistics import NEEDED, Summary

NOT_MEASURED = "not measured"
WORDS = {
    "image": "image",
    "encode": "encode",
    "prefill": "prefill",
    "decode": "decode",
    "pixel_decoder": "pixel decoder",
    "upsample": "upsample",
    "copies": "copies",
    "other": "other",
    "decode_token": "decode, a token",
    "answer": "answer on an encoded frame",
    "first_mask": "first mask",
    "total": "total",
}


def number(value: float | None) -> str:
    """Three digits that count, never in powers of ten."""
    if value is None:
        return "–"
    size = abs(value)
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:,.{places}f}"


def cells(summary: Summary | None) -> list[str]:
    """p50 p90 p95 p99 mean std n."""
    if summary is None:
        return [NOT_MEASURED, *["–"] * (len(NEEDED) + 2)]
    percentiles = [number(summary.percentiles[p]) for p in NEEDED]
    return [*percentiles, number(summary.mean), number(summary.std), f"{summary.n:,}"]


def rows(record: Record) -> list[list[str]]:
    """Name and `cells` of each stage."""
    return [[WORDS[name], *cells(record.summary(name))] for name in COLUMNS]


def header() -> list[str]:
    return ["ms", *(f"p{p}" for p in NEEDED), "mean", "std", "n"]


def markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table in columns of equal width; all but the first to the right."""
    widths = [max(len(row[i]) for row in (titles, *body)) for i in range(len(titles))]
    for row in (titles, None, *body):
        if row is None:
            yield "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
        else:
            words = [
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            yield "| " + " | ".join(words) + " |"


def facts(record: Record) -> list[tuple[str, str]]:
    """What a reader must know beside the times."""
    about = record.about
    memory, energy, overhead = about["memory"], about["energy"], about["overhead"]
    host, device = memory["host_peak_bytes"], memory["device_bytes"]
    joules = energy["joules_per_answer"]
    power = f"{number(joules)} J ({number(energy['watts'])} W, {energy['source']})"
    several = "several bundles share the process" if about["interleaved"] > 1 else ""
    return [
        ("load", f"{number(about['load_ms'])} ms (files checked and graphs made ready, once)"),
        ("first answer", f"{number(about['first_answer_ms'])} ms (cold)"),
        ("throughput", f"{number(about['throughput_per_s'])} answers a second"),
        ("language forwards an answer", number(about["forwards_per_answer"])),
        ("peak host memory", _unless(host, f"{(host or 0) / 1e6:,.0f} MB", several)),
        ("device memory", _unless(device, f"{(device or 0) / 1e6:,.0f} MB", several)),
        ("energy an answer", _unless(joules, power, energy["why_not"] or "")),
        ("throttled", _throttling(about["throttling"])),
        ("power mode", _change(about["before"]["power_mode"], about["after"]["power_mode"])),
        ("temperatures", _states(about, "temperatures_c", "°C")),
        ("clocks", _states(about, "clocks_mhz", "MHz")),
        ("load average", _load(about)),
        ("measuring itself", f"{100 * overhead['share']:.2g} % of the time"),
    ]  # fmt: skip


def identity(record: Record) -> list[tuple[str, str]]:
    """Hardware, software and inputs."""
    about, machine = record.about, record.about["machine"]
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"])
    settings = about["settings"]
    count = len(record.table("total"))
    return [
        ("bundle", f"{about['bundle']['name']} ({about['bundle']['family']}, "
                   + ", ".join(f"{k} {v}" for k, v in about["bundle"]["precision"].items()) + ")"),
        ("manifest sha256", about["bundle"]["sha256"]),
        ("backend", about["backend"]),
        ("processor", f"{machine['cpu']}, {machine['cores']} cores"
                      + (f", OMP_NUM_THREADS={machine['threads']}" if machine["threads"] else "")),
        ("GPU", gpus or "none"),
        *([("L4T", machine["l4t"])] if machine["l4t"] else []),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("measured", f"{count:,} rounds of {len(about['questions'])} questions, {about['started']}"
                     + (f", in turn with {about['interleaved'] - 1} more" if about["interleaved"] > 1 else "")),
        ("settings", " ".join(f"--{name.removesuffix('_ms').removesuffix('_s')} {value:g}"
                              for name, value in settings.items())),
    ]  # fmt: skip


def report(records: Sequence[Record], comparisons: Sequence[Comparison]) -> str:
    """A Markdown document."""
    lines = ["# pixelrt bench", ""]
    for record in records:
        lines += [f"## {record.title}", ""]
        lines += [*markdown(header(), rows(record)), ""]
        lines += [f"- {name}: {value}" for name, value in (*facts(record), *identity(record))]
        lines += [""]
    for comparison in comparisons:
        lines += [f"## {comparison.second.title} against {comparison.first.title}", ""]
        lines += [*comparison_lines(comparison), ""]
    return "\n".join(lines)


def comparison_rows(comparison: Comparison, limit: float | None = None) -> tuple[list[str], list[list[str]]]:
    """Titles and a row a stage."""
    body = []
    for change in comparison.stages:
        ratio = change.ratio
        words = change.words
        if limit is not None and change.fails(limit):
            words += f", by more than {100 * limit:g} %"
        body.append(
            [
                WORDS[change.stage],
                number(change.first_ms),
                number(change.second_ms),
                "–" if ratio is None else f"{ratio.value:.3f}",
                "–" if ratio is None else f"{ratio.low:.3f} to {ratio.high:.3f}",
                words,
            ]
        )
    return ["ms", "first", "second", "ratio", "interval", ""], body


def comparison_notes(comparison: Comparison) -> list[str]:
    """How the comparison was made, and what differs beside the times."""
    rounds = [len(record.table("total")) for record in (comparison.first, comparison.second)]
    if comparison.paired:
        how = f"Measured in turn in one run, {rounds[0]} rounds; all intervals hold together with 95 %."
    else:
        how = (
            f"Measured in two runs, {rounds[0]} and {rounds[1]} rounds; all intervals hold together with 95 %, "
            "but what differs from run to run is not in them: pixelrt bench A B measures in turn."
        )
    medians = "Times are medians of each question, their geometric mean over the questions."
    return [f"{medians} {how}", *(f"Note: {what}." for _, what in comparison.differences)]


def comparison_lines(comparison: Comparison, limit: float | None = None) -> Iterator[str]:
    yield from markdown(*comparison_rows(comparison, limit))
    yield ""
    yield from comparison_notes(comparison)


def _unless(value: Any, words: str, why: str) -> str:
    if value is not None:
        return words
    return f"{NOT_MEASURED} ({why})" if why else NOT_MEASURED


def _throttling(found: dict[str, Any]) -> str:
    if found["seen"] is None:
        return f"{NOT_MEASURED} (no file tells)"
    return "yes: " + ", ".join(found["signs"]) if found["seen"] else "no"


def _change(before: str | None, after: str | None) -> str:
    if before is None and after is None:
        return NOT_MEASURED
    return str(before) if before == after else f"{before} before, {after} after"


def _load(about: dict[str, Any]) -> str:
    """More than the cores before the measurement: other programs want them too."""
    before, after = (about[when]["load_average"] for when in ("before", "after"))
    if before is None:
        return NOT_MEASURED
    busy = before > about["machine"]["cores"]
    return f"{number(before)} before, {number(after)} after" + (
        ": the machine was busy, do not trust these times" if busy else ""
    )


def _states(about: dict[str, Any], key: str, unit: str) -> str:
    """`cpu 45 → 61`, of everything that was read before and after."""
    found = []
    for name, now in about["after"][key].items():
        before = about["before"][key].get(name)
        pair = [_first(before), _first(now)]
        most = f" of {now[1]:,.0f}" if isinstance(now, list) and now[1] else ""
        found.append(f"{name} {number(pair[0])} → {number(pair[1])}{most} {unit}")
    field = "temperature_c" if key == "temperatures_c" else "clock_mhz"
    for i, gpu in enumerate(about["after"]["gpus"]):
        before = about["before"]["gpus"][i].get(field) if i < len(about["before"]["gpus"]) else None
        if gpu.get(field) is not None:
            found.append(f"{gpu['name']} {number(before)} → {number(gpu[field])} {unit}")
    return ", ".join(found) or NOT_MEASURED


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value
