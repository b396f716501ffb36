"""The licence a checkpoint states of itself."""

from __future__ import annotations

import re
from pathlib import Path

UNSTATED = "not stated by the checkpoint; see where it was published"


def licence_of(folder: Path) -> str:
    """`license:` of the model card's front matter, else that there is a licence file, else that none is stated."""
    card = folder / "README.md"
    if card.is_file():
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        stated = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
        if stated:
            return stated[1]
    for file in sorted(folder.glob("LICENSE*")):
        return f"see {file.name} of the checkpoint"
    return UNSTATED
