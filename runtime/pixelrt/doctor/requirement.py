"""Requirements of Python packages, as far as pixelrt's own metadata uses them: `name>=1.2,<3; extra == "x"`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pixelrt.doctor.machine import plain_name

_FORM = re.compile(
    r"""\s*(?P<name>[\w.-]+)\s*(?:\[(?P<extras>[^\]]*)\])?\s*\(?(?P<range>[^;()]*)\)?
    \s*(?:;.*?extra\s*==\s*["'](?P<extra>[\w.-]+)["'].*|;.*)?""",
    re.VERBOSE,
)
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([\w.+!-]+)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Requirement:
    """extra: which extra of pixelrt asks for it; "" is always. of: extras of the package itself."""

    name: str
    range: str
    extra: str = ""
    of: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Requirement:
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no requirement")
        of = tuple(part.strip() for part in (match["extras"] or "").split(",") if part.strip())
        bounds = ",".join(sorted(match["range"].replace(" ", "").split(","), reverse=True))
        return cls(plain_name(match["name"]), bounds, match["extra"] or "", of)

    def allows(self, version: str) -> bool:
        found = release(version)
        return all(_COMPARE[how](found, release(bound)) for how, bound in _BOUND.findall(self.range))

    def is_too_old(self, version: str) -> bool:
        """Below the range; above it a package mostly works, untried."""
        return any(
            release(version) < release(bound) for how, bound in _BOUND.findall(self.range) if how == ">="
        )

    def __str__(self) -> str:
        return self.name + self.range


def release(version: str) -> tuple[int, ...]:
    """`1.26.4+cpu` -> (1, 26, 4); zeros at the end count for nothing."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
