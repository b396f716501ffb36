"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """what, mend: a sentence each. command: what to type.

    stops: `pixelrt segment BUNDLE IMAGE PROMPT` does not run, or not right. Other problems cost speed or a feature.
    """

    what: str
    mend: str
    command: str
    stops: bool = False


@dataclass(frozen=True)
class Part:
    """One noun. says: its facts in a line."""

    name: str
    says: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
