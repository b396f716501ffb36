"""`.ci/run`: what makes it red, and its last line, with a `make` that only says what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLOSING = "=== 1234 passed, 5 skipped in 300.12s (0:05:00) ==="
MAKE = f"""#!/bin/sh
echo "make $1"
case $1 in
test) echo "{CLOSING}"; exit $TEST ;;
tensorrt-check) echo "=== 4 passed in 28.00s ==="; exit $RTX ;;
check) exit $CHECK ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "red"),
    [
        ({}, False),
        ({"TEST": "1"}, True),
        ({"RTX": "1"}, True),
        ({"TEST": "2", "RTX": "1"}, True),
        ({"CHECK": "1"}, True),
    ],
)
def test_red_and_green(root: Path, tmp_path: Path, codes: dict[str, str], red: bool) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci" / "run", tmp_path / ".ci" / "run")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(MAKE)
    make.chmod(0o755)
    path = f"{make.parent}{os.pathsep}{os.environ['PATH']}"
    ends = {"CHECK": "0", "TEST": "0", "RTX": "0", **codes}
    done = subprocess.run(
        [str(tmp_path / ".ci" / "run")],
        env={**os.environ, "PATH": path, **ends},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == red, done.stderr
    if "CHECK" not in codes:
        assert done.stdout.splitlines()[-1] == CLOSING
        assert "make tensorrt-check" in done.stdout
