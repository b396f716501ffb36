"""verdict.json beside engines: whether they gave the bundle's golden outputs, and on which GPU.

A verdict speaks of the files it was made over, by their hashes: an engine built again, or other golden outputs, and it
is no verdict any more. Engines without one that passed are not run (`check_verdict`).
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixelrt.bundle import Bundle
from pixelrt.engines import Engines
from pixelrt.errors import InputError
from pixelrt.goldens.file import hash_of

FORMAT = 1
FILE = "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """passed: None where nothing was compared. words: the sentence. goldens, engines: SHA-256 of the golden outputs
    and, graph by graph, of the engines. device: name of the GPU."""

    passed: bool | None
    words: str
    goldens: str
    engines: dict[str, str]
    device: str = ""
    backend: str = ""
    stage: str = ""  # the first that differs
    findings: list[dict[str, Any]] = field(default_factory=list)


def verdict_on(engines: Engines, bundle: Bundle, passed: bool | None, words: str, **more: Any) -> Verdict:
    hashes = {graph: record.sha256 for graph, record in engines.records.items()}
    return Verdict(passed, words, hash_of(bundle), hashes, **more)


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Beside, then renamed."""
    beside = folder / f".{FILE}.partial"
    document = {"format": FORMAT, **asdict(verdict)}
    beside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(folder / FILE)


def read_verdict(folder: Path) -> Verdict | None:
    """None where there is none, or one that another version wrote: then it is made again."""
    try:
        document = json.loads((folder / FILE).read_bytes())
        if document.pop("format") != FORMAT:
            return None
        return Verdict(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def verified(engines: Engines, bundle: Bundle, device: str) -> bool:
    """Whether these very engines gave these golden outputs on such a GPU."""
    verdict = read_verdict(engines.folder)
    return verdict is not None and verdict.passed is True and not _stale(verdict, engines, bundle, device)


def check_verdict(engines: Engines, bundle: Bundle, device: str) -> None:
    """Raises InputError unless they are `verified`: why, and the command that mends it."""
    verdict = read_verdict(engines.folder)
    mend = f"Run here: {verify_command(bundle.path)}"
    other = _stale(verdict, engines, bundle, device) if verdict else ""
    if verdict is not None and verdict.passed and not other:
        return
    if not hash_of(bundle):
        raise InputError(
            f"{engines.folder} cannot be verified, for {bundle.path} holds no golden outputs. "
            "Export the bundle again, or use --backend onnxruntime."
        )
    if verdict is None:
        raise InputError(f"{engines.folder} is not verified yet. {mend}")
    if other or verdict.passed is None:
        why = (other or verdict.words).removesuffix(".")
        raise InputError(f"{engines.folder} is not verified here: {why}. {mend}")
    raise InputError(
        f"{engines.folder} did not pass its verification: {verdict.words}. Build it again, "
        f"or use --backend onnxruntime; {verify_command(bundle.path)} says more."
    )


def verify_command(bundle: Path) -> str:
    return shlex.join(["pixelrt", "verify", str(bundle)])


def _stale(verdict: Verdict, engines: Engines, bundle: Bundle, device: str) -> str:
    """Why a verdict says nothing of these engines; "" where it does."""
    if verdict.passed is None:
        return ""
    if verdict.engines != {graph: record.sha256 for graph, record in engines.records.items()}:
        return "engines were built since"
    if verdict.goldens != hash_of(bundle):
        return "the bundle's golden outputs are others"
    if verdict.device != device:
        return f"it was verified on {verdict.device}, this GPU is {device}"
    return ""
