"""`pixelrt doctor`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelrt.cli import debug_option, say

if TYPE_CHECKING:
    from pixelrt.doctor.part import Part

WIDTH = 13


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all that was found, for a program or a report.")
@debug_option
def doctor(as_json: bool) -> None:
    """Say what this machine has, and how to mend what is wrong.

    Changes nothing and needs no root. Exit code 0 where nothing keeps `pixelrt segment` from running, 1 otherwise.
    """
    from pixelrt.doctor import examine
    from pixelrt.doctor.machine import this_machine

    parts = [typed(part) for part in examine(this_machine())]
    if as_json:
        say(json.dumps(document(parts), ensure_ascii=False, indent=2))
    else:
        for line in lines(parts):
            say(line)
    if any(problem.stops for part in parts for problem in part.problems):
        raise click.exceptions.Exit(1)


def typed(part: Part) -> Part:
    """With commands for this very Python, where another one (or none) is first on PATH."""
    here = Path(sys.executable)
    if shutil.which("python") == str(here):
        return part
    python = shlex.quote(str(here))

    def exact(command: str) -> str:
        command = re.sub(r"\bpip (?=install|uninstall)", f"{python} -m pip ", command)
        return re.sub(r"^python(?= -m)", python, command)

    return replace(part, problems=tuple(replace(p, command=exact(p.command)) for p in part.problems))


def document(parts: list[Part]) -> dict[str, Any]:
    from pixelrt import __version__

    problems = [{"part": part.name, **asdict(problem)} for part in parts for problem in part.problems]
    return {
        "pixelrt": __version__,
        "runs": not any(problem["stops"] for problem in problems),
        "parts": {part.name: {"says": part.says, **part.facts} for part in parts},
        "problems": problems,
    }


def lines(parts: list[Part]) -> list[str]:
    """Facts, then what stops, then what else could be better."""
    out = [f"{part.name:<{WIDTH}}{part.says}" for part in parts]
    problems = sorted((p for part in parts for p in part.problems), key=lambda p: not p.stops)
    for problem in problems:
        out += ["", f"{'STOPS' if problem.stops else 'note':<{WIDTH}}{problem.what}"]
        out += [f"{'':<{WIDTH}}{problem.mend}", f"{'':<{WIDTH}}$ {problem.command}"]
    stops = sum(problem.stops for problem in problems)
    rest = len(problems) - stops
    also = f" {rest} {'note' if rest == 1 else 'notes'} above." if rest else ""
    verdict = "Nothing keeps pixelrt from running here."
    if stops:
        verdict = f"{stops} {'problem keeps' if stops == 1 else 'problems keep'} pixelrt from running here."
    return [*out, "", verdict + also]
