"""Packages of other systems, in a folder of their own: the environment that runs the benchmark stays as it is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

GENAI = ("onnxruntime-genai==0.18.0", "onnx-ir==1.1.0")  # onnx-ir: its model builder's
NF4 = ("bitsandbytes==0.50.2",)


def beside(folder: Path, *requirements: str) -> Path:
    """Install the requirements into `folder`, unless they are there, and import from it from now on.

    Without what they depend on, which is numpy, torch and onnxruntime: those have to be the ones that are measured.
    """
    stamp = folder / "requirements.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8").split() != list(requirements):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*command, "--target", str(folder), *requirements], check=True)
        stamp.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    return folder
