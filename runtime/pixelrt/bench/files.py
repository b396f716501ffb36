"""Files below a root and short programs: what sensors are read from, on this machine or from a recording of one."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SECONDS = 15  # nvidia-smi may take some where nothing keeps the driver loaded


@dataclass(frozen=True)
class Files:
    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """Text of a file without the blanks around it; None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text("utf-8", "replace").strip("\0\n ")
        except OSError:
            return None

    def number(self, path: str) -> float | None:
        try:
            return float(self.read(path) or "")
        except ValueError:
            return None

    def paths(self, pattern: str) -> list[str]:
        """Paths that fit a pattern."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return ["/" + path.relative_to(self.root).as_posix() for path in found]

    def run(self, *command: str) -> str | None:
        """What a program prints; None where there is none, or it fails."""
        program = shutil.which(command[0])
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None
