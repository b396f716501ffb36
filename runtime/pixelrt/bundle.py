"""A bundle on disk: the folder `pixelrt export` writes and everything else reads. See docs/bundle.md.

`Bundle.read` refuses what is wrong; all code that follows trusts what it returns.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pixelrt.errors import InputError
from pixelrt.manifest import FORMAT, LARGEST, MANIFEST, parse
from pixelrt.onnx_file import external_locations

Progress = Callable[[int, int], None]  # done, of how much


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph. dtype `activations` is the type named by the graph file in use."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphFile:
    """One graph in one activation type. cache: how a language graph keeps its past, `in_place` or `concat`."""

    path: Path
    activations: str
    opset: int
    cache: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: dict[str, Any]
    sha256: str  # of manifest.json, which holds the hash of every other file

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        expect_sha256: str | None = None,
        verify: bool = True,
        progress: Progress = lambda done, total: None,
    ) -> Bundle:
        """Read and check a bundle folder.

        expect_sha256: the hash the manifest must have (it covers all files). verify: hash every file; without
        it only names and sizes are checked. progress: bytes hashed, and in all. Raises InputError.
        """
        folder = Path(path)
        file = folder / MANIFEST
        if not file.is_file():
            raise InputError(_no_manifest(folder))
        with file.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
        sha256 = hashlib.sha256(raw).hexdigest()
        if expect_sha256 is not None and sha256 != expect_sha256.lower():
            raise InputError(
                f"{file} has SHA-256 {sha256}, but {expect_sha256} was expected. "
                "Get the bundle again, or pass the hash of the one you mean."
            )
        manifest = parse(file, raw)
        bundle = cls(folder, manifest, sha256)
        sizes = {name: bundle._check_size(name, entry) for name, entry in manifest["files"].items()}
        before, total = 0, sum(sizes.values())
        for name, size in sizes.items() if verify else ():

            def read(done: int, before: int = before) -> None:
                progress(before + done, total)

            bundle._check_hash(name, manifest["files"][name], read)
            before += size
        bundle._check_uses()
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of this bundle; a name that leads out of the folder is refused."""
        pure = PurePosixPath(name)
        inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name and name != ""
        root = self.path.resolve()
        if not inside or root not in (root / name).resolve().parents:
            raise InputError(
                f"{self.path / MANIFEST} names {name!r}, which lies outside the bundle. Do not use this bundle."
            )
        return self.path / name

    def graph(self, name: str, *, activations: str) -> GraphFile:
        """Graph `name` with these activations, `float32` or `float16`."""
        graph = self.manifest["graphs"].get(name, {"files": []})
        for entry in graph["files"]:
            if entry["activations"] == activations:
                inputs, outputs = (
                    tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in graph[side])
                    for side in ("inputs", "outputs")
                )
                path = self.file(entry["file"])
                return GraphFile(path, activations, graph["opset"], graph.get("cache"), inputs, outputs)
        raise InputError(
            f"{self.path} holds no {name} graph with {activations} activations. "
            "Export the bundle again with this version of pixelrt."
        )

    def _check_uses(self) -> None:
        """Every file that the manifest uses, and every file that a graph keeps tensors in, has its hash."""
        graphs = {f["file"] for g in self.manifest["graphs"].values() for f in g["files"]}
        used = {*graphs, self.manifest["embeddings"]["file"], self.manifest["tokens"]["tokenizer"]}
        self._check_listed(used)
        for graph in graphs:
            try:
                outside = external_locations(self.file(graph).read_bytes())
            except ValueError as error:
                raise InputError(
                    f"{self.path / graph} is not an ONNX file ({error}). Export it again."
                ) from None
            self._check_listed(outside)

    def _check_listed(self, names: set[str]) -> None:
        for name in names - self.manifest["files"].keys():
            raise InputError(
                f"{self.path / MANIFEST} uses {name!r} but lists no hash for it. Export the bundle again."
            )

    def _check_size(self, name: str, entry: dict[str, Any]) -> int:
        file = self.file(name)
        if not file.is_file():
            raise InputError(f"{self.path} lacks {name}. Copy or export the bundle again.")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise InputError(
                f"{file} has {size} bytes, its manifest says {entry['bytes']}. Copy or export the bundle again."
            )
        return size

    def _check_hash(self, name: str, entry: dict[str, Any], read: Callable[[int], None]) -> None:
        file = self.file(name)
        if sha256_of(file, read) != entry["sha256"]:
            raise InputError(
                f"{file} was altered: its SHA-256 differs from the manifest's. Copy or export the bundle again."
            )


def _no_manifest(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist. Give the folder of a bundle (it holds {MANIFEST})."
    if (folder / "config.json").is_file():
        return (
            f"{folder} is a checkpoint, not a bundle (no {MANIFEST}). "
            f"Export it first: pixelrt export {folder} bundles/{folder.name}"
        )
    return f"{folder} is not a bundle: it has no {MANIFEST}. Make one with: pixelrt export CHECKPOINT BUNDLE"


def sha256_of(file: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB. progress: called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            done += len(piece)
            progress(done)
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    manifest: dict[str, Any],
    names: list[str],
    progress: Progress = lambda done, total: None,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Hash the files `names` into the manifest and write it, last of all; gives its `files`.

    known: entries of files that were hashed before, and are as they were. progress: bytes hashed, and in all.
    """
    known = known or {}
    sizes = {name: (folder / name).stat().st_size for name in sorted(names) if name not in known}
    files, before, total = {name: known[name] for name in names if name in known}, 0, sum(sizes.values())
    for name, size in sizes.items():

        def read(done: int, before: int = before) -> None:
            progress(before + done, total)

        files[name] = {"bytes": size, "sha256": sha256_of(folder / name, read)}
        before += size
    files = {name: files[name] for name in sorted(files)}
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return files
