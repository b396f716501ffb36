"""Checkpoint folders as published: config.json and weights, every tensor accounted for.

`Checkpoint.open(folder)` reads names, shapes and dtypes; weights stay on disk until `tensor(key)` asks for
one, so a 7B model passes through the memory of its largest tensor. Every fault is an `InputError`.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.bundle import sha256_of
from pixelrt.errors import InputError

from pixelrt_export.shards import Entry, Shape, open_shard

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or an index (NAME.index.json) and shards
SHOWN = 20  # names of each kind in an error
JSON_LIMIT = 16 << 20  # bytes; the index of a model of a hundred layers has 0.1 MB


@dataclass(frozen=True)
class DeadTensor:
    """A kind of tensor that a checkpoint may hold and no graph reads: why it is dead, and how it is known."""

    reason: str
    matches: Callable[[str, Shape], bool]
    at_most: int | None = None

    @classmethod
    def named(cls, pattern: str, reason: str) -> DeadTensor:
        """By name; `*` stands for anything."""
        return cls(reason, lambda key, shape: fnmatch.fnmatchcase(key, pattern))

    @classmethod
    def shaped(cls, shape: Sequence[int], count: int, reason: str) -> DeadTensor:
        """By shape, `count` of them at most, for tensors whose names nobody knows."""
        return cls(reason, lambda key, got: got == tuple(shape), count)


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    config: dict[str, Any]
    _entries: Mapping[str, Entry]
    _files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, config_required: bool = True) -> Checkpoint:
        folder = Path(folder)
        _refuse_other_folders(folder)
        files = {}
        config: dict[str, Any] = {}
        if (folder / "config.json").exists():
            files["config.json"] = file_inside(folder, "config.json")
            config = read_json(files["config.json"])
        elif config_required:
            raise InputError(f"{folder} has no config.json: copy it from where the weights were published")
        weights = _weight_files(folder)
        files |= weights
        owner: dict[str, str] = {}
        entries: dict[str, Entry] = {}
        for name, path in weights.items():
            if name.endswith(".index.json"):
                continue
            for key, entry in open_shard(path).items():
                if key in entries:
                    raise InputError(
                        f"{folder} holds {key} twice, in {owner[key]} and {name}: remove one file"
                    )
                entries[key], owner[key] = entry, name
        for name in weights:
            if name.endswith(".index.json"):
                _check_index(weights[name], owner)
        return cls(folder, config, entries, files)

    def keys(self) -> Iterable[str]:
        return self._entries.keys()

    def shapes(self) -> dict[str, Shape]:
        return {key: entry.shape for key, entry in self._entries.items()}

    def dtype(self, key: str) -> np.dtype[Any]:
        return self._entry(key).dtype

    def tensor(self, key: str) -> np.ndarray:
        """The tensor as stored (bfloat16 as ml_dtypes.bfloat16), read-only."""
        return self._entry(key).read()

    def with_prefix(self, prefix: str) -> Checkpoint:
        """The same files, every tensor named prefix + its name."""
        return replace(self, _entries={prefix + key: entry for key, entry in self._entries.items()})

    def _entry(self, key: str) -> Entry:
        if key not in self._entries:
            raise InputError(
                f"{self.folder} has no tensor {key}, which the export needs: is the download complete?"
            )
        return self._entries[key]

    def files(self) -> dict[str, int]:
        """Size in bytes of config and weight files, by name."""
        return {name: path.stat().st_size for name, path in self._files.items()}

    def paths(self) -> dict[str, Path]:
        """The same files."""
        return dict(self._files)

    def sha256(self, name: str, read: Callable[[int], None] = lambda done: None) -> str:
        """Hash of one of these files; all of a 7B model's take minutes. read: called with the bytes read so far."""
        return sha256_of(self._files[name], read)

    def account(
        self, expected: Mapping[str, Sequence[int]], dead: Sequence[DeadTensor] = ()
    ) -> dict[str, str]:
        """Every tensor is expected, of the expected shape, or dead; else one error lists all that are not.

        Returns what was tolerated: name -> reason.
        """
        found = self.shapes()
        missing = [f"{key} {list(shape)}" for key, shape in expected.items() if key not in found]
        misshapen = [
            f"{key} is {list(found[key])}, wanted {list(shape)}"
            for key, shape in expected.items()
            if key in found and found[key] != tuple(shape)
        ]
        tolerated: dict[str, str] = {}
        used = [0] * len(dead)
        unexpected = []
        for key in sorted(found.keys() - expected.keys()):
            for i, kind in enumerate(dead):
                if kind.matches(key, found[key]) and (kind.at_most is None or used[i] < kind.at_most):
                    used[i] += 1
                    tolerated[key] = kind.reason
                    break
            else:
                unexpected.append(f"{key} {list(found[key])}")
        faults = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if any(names for _, names in faults):
            listed = "".join(_listed(kind, names) for kind, names in faults if names)
            raise InputError(f"The tensors of {self.folder} are not those its config.json describes:{listed}")
        return tolerated


def file_inside(folder: Path, name: str) -> Path:
    """folder/name, which must exist and lie, links followed, in the folder.

    A hub cache (…/snapshots/REVISION/ of links into …/blobs/) may also link to its own blobs.
    """
    path, real = folder / name, (folder / name).resolve()
    homes = [folder.resolve()]
    homes += [parent.parent / "blobs" for parent in folder.resolve().parents if parent.name == "snapshots"]
    if Path(name).is_absolute() or ".." in Path(name).parts or not any(real.is_relative_to(h) for h in homes):
        raise InputError(
            f"{folder} names a file outside itself ({name} is {real}): put the file into the folder"
        )
    if not path.exists():
        raise InputError(f"{folder} lacks {name}: the download is incomplete")
    return path


def read_json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > JSON_LIMIT:
        raise InputError(
            f"{path} has {size:,} bytes, wanted {JSON_LIMIT:,} at most: copy it again from where it was published"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error}): copy it again from where it was published"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, wanted an object {{…}}: copy it again")
    return value


def _refuse_other_folders(folder: Path) -> None:
    shape = "a checkpoint is a folder with config.json and model.safetensors or pytorch_model-*.bin"
    if not folder.exists():
        raise InputError(f"{folder} does not exist; {shape}: download it and give the folder's path")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; {shape}: give the folder")
    if (folder / "manifest.json").exists() and not (folder / "config.json").exists():
        raise InputError(f"{folder} is a bundle already; {shape}: give the checkpoint it was made from")
    if not (folder / "config.json").exists():
        inner = [child.parent.name for child in sorted(folder.glob("*/config.json"))]
        if inner:
            raise InputError(f"{folder} has no config.json; {shape}: did you mean {folder / inner[0]}?")


def _weight_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the index, if any, and the weight files."""
    for whole in WEIGHTS:
        if (folder / whole).exists():
            return {whole: file_inside(folder, whole)}
        index = f"{whole}.index.json"
        if (folder / index).exists():
            path = file_inside(folder, index)
            shards = sorted(set(_weight_map(path).values()))
            return {index: path} | {name: file_inside(folder, name) for name in shards}
    wanted = " or ".join(f"{whole} or {whole}.index.json with its shards" for whole in WEIGHTS)
    present = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder} is no checkpoint: it lacks {wanted}, and holds {present}")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(
            f"{index} has no weight_map of tensor to file: copy it again from where it was published"
        )
    for name in weight_map.values():
        if Path(name).suffix not in (".safetensors", ".bin"):
            raise InputError(
                f"{index} names {name}, which is no .safetensors or .bin file: copy the index again"
            )
    return weight_map


def _check_index(index: Path, owner: Mapping[str, str]) -> None:
    for key, name in _weight_map(index).items():
        if owner.get(key) != name:
            where = f"is in {owner[key]}" if key in owner else "is not there"
            raise InputError(
                f"{index} places {key} in {name}, but it {where}: the files are not of one release"
            )


def _listed(kind: str, names: Sequence[str]) -> str:
    more = f"\n    … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n  {len(names)} {kind}:" + "".join(f"\n    {name}" for name in names[:SHOWN]) + more
