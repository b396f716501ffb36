"""The shipped checkpoint as a bundle, exported once a session, and the samples to ask it about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "pixellm-tiny"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip("checkpoints/pixellm-tiny is not there")
    return CHECKPOINT


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pixelrt_export.export import export_bundle

    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "pixellm-tiny")


@pytest.fixture(scope="session")
def samples() -> list[tuple[Path, str]]:
    """(picture, question) of calib_data."""
    folder = ROOT / "calib_data"
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [(folder / sample["image"], sample["prompt"]) for sample in map(json.loads, lines)]
