"""`verify_bundle`: open both sides, compare them a few pictures at a time, report."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelrt.bundle import Bundle
from pixelrt.errors import InputError

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.verify.check import Check, Listen, Outcome
from pixelrt_export.verify.original import Original, Question
from pixelrt_export.verify.report import Report, Thresholds, joined
from pixelrt_export.verify.stored import compare_stored
from pixelrt_export.verify.subject import WHOLE

# `model_type` of a checkpoint's config.json -> module with `open_original(checkpoint, vision_tower)`.
ORIGINALS = {"llava": "pixelrt_export.verify.pixellm", "llava_phi": "pixelrt_export.verify.psalm"}
# Questions compared at once: their features and states are held, 10 MB each at 7B. Each group streams the model anew.
TOGETHER = 32


def open_original(checkpoint: Path, vision_tower: Path | None = None) -> Original:
    """Raises InputError where the checkpoint is of no family that is known."""
    opened = Checkpoint.open(checkpoint)
    kind = str(opened.config.get("model_type"))
    if kind not in ORIGINALS:
        raise InputError(f"{checkpoint} has model_type {kind!r}; pixelrt verifies {', '.join(ORIGINALS)}.")
    original: Original = importlib.import_module(ORIGINALS[kind]).open_original(opened, vision_tower)
    return original


def verify_bundle(
    bundle: Path,
    original: Original,
    records: Sequence[Question],
    thresholds: Thresholds | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    listen: Listen | None = None,
    whole: int = WHOLE,
) -> Report:
    """Compare a bundle with its original on these questions. Raises InputError for a bundle that cannot be read.

    listen, whole: see `Check`.
    """
    read = Bundle.read(bundle, progress=lambda done, total: progress("bundle hashed", done, total))
    if read.manifest["family"] != original.family:
        raise InputError(
            f"{bundle} is of family {read.manifest['family']}, its checkpoint of {original.family}. "
            "Give the checkpoint that it was made from."
        )
    outcomes = [Outcome(compare_stored(read, original.checkpoint, original.vision_tower, progress), [])]
    for start in range(0, len(records), TOGETHER):
        outcomes.append(
            Check(read, original, progress, start, listen, whole)(records[start : start + TOGETHER])
        )
    return Report(joined(outcomes), thresholds or Thresholds(), read.manifest["precision"])
