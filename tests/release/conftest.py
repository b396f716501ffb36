"""The shipped checkpoints as bundles, exported once a session, and the samples to ask them about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "checkpoints"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def shipped(name: str) -> Path:
    folder = CHECKPOINTS / name
    assert (folder / "config.json").is_file(), f"{folder} is part of the repository and is not there"
    return folder


def exported(checkpoint: Path, factory: pytest.TempPathFactory) -> Path:
    from pixelrt_export.export import export_bundle

    return export_bundle(checkpoint, factory.mktemp("bundles") / checkpoint.name)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    return shipped("pixellm-tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def psalm_checkpoint() -> Path:
    return shipped("psalm-tiny")


@pytest.fixture(scope="session")
def psalm_bundle(psalm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(psalm_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def class_names() -> list[str]:
    return (ROOT / "calib_data" / "classes.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def samples() -> list[tuple[Path, str]]:
    """(picture, question) of calib_data."""
    folder = ROOT / "calib_data"
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [(folder / sample["image"], sample["prompt"]) for sample in map(json.loads, lines)]
