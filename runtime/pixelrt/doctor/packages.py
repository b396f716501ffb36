"""Python packages: what pixelrt needs, and which of its extras are complete. The ranges are pyproject.toml's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pixelrt.doctor.machine import Machine
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import Requirement

OWN = "pixelrt"
# Extras that exclude each other or make no difference to a user.
LEFT_OUT = {"dev"}


def read_requirements(machine: Machine) -> list[Requirement]:
    return [Requirement.parse(text) for text in machine.requires]


def needs_of(extra: str, all_: Sequence[Requirement]) -> list[Requirement]:
    """What an extra brings, those of other extras that it names included."""
    found = []
    for requirement in all_:
        if requirement.extra == extra:
            inner = [needs_of(name, all_) for name in requirement.of] if requirement.name == OWN else []
            found += [r for group in inner for r in group] if inner else [requirement]
    return found


def missing(machine: Machine, requirements: Iterable[Requirement]) -> list[Requirement]:
    return [r for r in requirements if r.name not in machine.packages]


def out_of_range(machine: Machine, requirements: Iterable[Requirement]) -> list[Requirement]:
    return [r for r in requirements if r.name in machine.packages and not r.allows(machine.packages[r.name])]


def examine(machine: Machine) -> Part:
    requirements = read_requirements(machine)
    if not requirements:
        problem = Problem(
            "pixelrt runs from its source and is not installed, so that versions of packages cannot be checked.",
            "Install it, from its folder.",
            "pip install --editable '.[cpu]'",
        )
        return Part("packages", "pixelrt is not installed", {}, (problem,))
    extras = sorted({r.extra for r in requirements} - {"", *LEFT_OUT})
    lacking = {extra: missing(machine, needs_of(extra, requirements)) for extra in extras}
    complete = [extra for extra in extras if not lacking[extra]]
    always = needs_of("", requirements)
    problems = [_problem(machine, r) for r in [*missing(machine, always), *out_of_range(machine, always)]]
    for extra in complete:
        wrong = out_of_range(machine, needs_of(extra, requirements))
        known = {p.command for p in problems}
        found = [_problem(machine, r) for r in wrong]
        problems += [p for p in found if p.command not in known]
    versions = ", ".join(f"{r.name} {machine.packages.get(r.name, 'missing')}" for r in always)
    says = f"{OWN} {machine.packages.get(OWN, '')}, {versions}; extras: {', '.join(complete) or 'none'}"
    facts = {
        "versions": {r.name: machine.packages.get(r.name) for r in requirements if r.name != OWN},
        "extras": {extra: [r.name for r in lacking[extra]] or "complete" for extra in extras},
    }
    return Part("packages", says, facts, tuple(problems))


def _problem(machine: Machine, wanted: Requirement) -> Problem:
    have = machine.packages.get(wanted.name)
    whose = f"{OWN}[{wanted.extra}]" if wanted.extra else OWN
    what = f"{whose} needs {wanted}; " + (f"{have} is installed." if have else "it is not installed.")
    stops = not wanted.extra and (have is None or wanted.is_too_old(have))
    return Problem(what, "Install one that fits.", f"pip install '{wanted}'", stops)
