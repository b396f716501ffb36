"""What an export is an export of: two with the same `job` write the same bytes, and one may finish the other's work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pixelrt import __version__

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import PROMPTS, Record

COMPUTING = ("numpy", "onnx", "onnxruntime", "bitsandbytes")  # packages whose versions may show in the bytes


def job(
    sources: Mapping[str, Checkpoint],
    precision: Mapping[str, str],
    settings: Settings,
    records: Sequence[Record],
    answered: Sequence[Record] = (),
) -> dict[str, Any]:
    """JSON, whose keys are what a user is told has changed. records: that are calibrated with, if any. answered:
    whose answers are drafted from."""
    return {
        "pixelrt": [__version__, code_hash(), *map(_version, COMPUTING)],
        "the checkpoint": {prefix: files_of(checkpoint) for prefix, checkpoint in sources.items()},
        "the precision": dict(precision),
        "the settings": [settings.block, settings.calibrated, sorted(settings.keep), settings.head],
        "the calibration pictures": questions(records),
        "the answers in prompts.jsonl": [[record.prompt, record.answer] for record in answered],
    }


def files_of(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Size and time of each file; reading 14 GB to find that nothing changed would take a minute."""
    return {name: _stamp(path) for name, path in checkpoint.paths().items()}


def questions(records: Sequence[Record]) -> list[Any]:
    """What is asked, and size and time of each file it comes from."""
    pictures = {record.image for record in records}
    files = pictures | {picture.parent / PROMPTS for picture in pictures}
    return [
        [repr(record) for record in records],
        [_stamp(path) for path in sorted(files) if path.is_file()],
    ]


def code_hash() -> str:
    """Of the exporter's own source: half a bundle by other code is of no use, whatever the version says."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
