"""A machine from a recording: its files are written to a folder, its programs answer as they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pixelrt.doctor.machine import Machine, Ran

HERE = Path(__file__).resolve().parent
NAMES = ("orin", "thor", "server", "container", "debian")


def recording(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine_of(recorded: dict[str, Any], root: Path) -> Machine:
    for path, text in recorded["files"].items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode())
    answers = {command: Ran(*answer) for command, answer in recorded["commands"].items()}
    return Machine(
        root=root,
        processor=recorded["processor"],
        python=tuple(recorded["python"]),
        packages=recorded["packages"],
        requires=recorded["requires"] if "requires" in recorded else recording("debian")["requires"],
        library=recorded["library"],
        disk_free=recorded["disk_free"],
        run=lambda command: answers.get(" ".join(command)),
    )
