"""`pixelrt compare A.json B.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pixelrt.cli import debug_option, say
from pixelrt.errors import InputError


def share_of(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """`5%` or `0.05` as 0.05."""
    text = value.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 10:
        raise InputError(f"--fail-over is {value!r}. Give a share of the time: 5% or 0.05")
    return share


@click.command()
@click.argument("first", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("second", metavar="B.json", type=click.Path(path_type=Path))
@click.option(
    "--fail-over",
    "limit",
    default="5%",
    callback=share_of,
    show_default=True,
    help="End with exit code 1 where a stage of B is surely slower than A by more than this.",
)
@click.option(
    "--across",
    multiple=True,
    type=click.Choice(["hardware", "inputs", "bundles"]),
    help="Compare although these differ; may be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@debug_option
@click.pass_context
def compare(
    ctx: click.Context, first: Path, second: Path, limit: float, across: tuple[str, ...], as_json: bool
) -> None:
    """Say which stages of B.json are slower or faster than in A.json, both written by pixelrt bench.

    Exit code 1 where the lower end of a stage's interval lies above the limit, 2 where the two cannot be compared.
    """  # fmt: skip
    from pixelrt.bench import comparison as comparisons
    from pixelrt.bench.record import read_record
    from pixelrt.bench.table import WORDS, comparison_lines

    found = comparisons.compare(read_record(first), read_record(second), across)
    failed = found.failed(limit)
    if as_json:
        say(json.dumps(_document(found, limit), ensure_ascii=False, indent=2))
    else:
        say(f"first:  {found.first.title}  {first}")
        say(f"second: {found.second.title}  {second}\n")
        for line in comparison_lines(found, limit):
            say(line)
        say()
        if failed:
            names = ", ".join(WORDS[change.stage] for change in failed)
            say(f"slower by more than {100 * limit:g} %: {names}")
        else:
            changed = [c for c in found.stages if c.ratio is not None and c.words != "no change"]
            words = ", ".join(f"{WORDS[c.stage]} {c.words}" for c in changed)
            say(f"within {100 * limit:g} %: {words}" if words else "no change")
    if failed:
        ctx.exit(1)


def _document(found: Any, limit: float) -> dict[str, Any]:
    return {
        "fail_over": limit,
        "paired": found.paired,
        "differences": [{"kind": kind, "what": what} for kind, what in found.differences],
        "stages": [
            {
                "stage": change.stage,
                "first_ms": change.first_ms,
                "second_ms": change.second_ms,
                "ratio": change.ratio
                and {"value": change.ratio.value, "low": change.ratio.low, "high": change.ratio.high},
                "says": change.words,
                "fails": change.fails(limit),
            }
            for change in found.stages
        ],
    }
