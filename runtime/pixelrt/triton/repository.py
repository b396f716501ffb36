"""`write_repository`: a bundle to a folder that tritonserver takes as its --model-repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pixelrt import __version__
from pixelrt.archive import check_room
from pixelrt.bundle import Bundle, Progress
from pixelrt.engines import FOLDER as ENGINES
from pixelrt.engines import LIST, Engines, read_engines
from pixelrt.errors import InputError
from pixelrt.manifest import MANIFEST
from pixelrt.onnx_file import external_locations
from pixelrt.segmenter import load
from pixelrt.tensorrt import FLAVOURS
from pixelrt.triton import config
from pixelrt.triton.front import IN_PROCESS, MODELS
from pixelrt.triton.leaf import LEAVES
from pixelrt.triton.sample import sample_of

FORMAT, ABOUT = 1, "repository.json"
NONE, ONNXRUNTIME, TENSORRT = "none", "onnxruntime", "tensorrt"
KINDS = (ONNXRUNTIME, TENSORRT, NONE)  # of leaves
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a model


@dataclass(frozen=True)
class Wish:
    """What the repository shall be. Raises InputError where that does not fit together."""

    name: str  # of the front model
    leaves: str = ONNXRUNTIME
    gpu: bool = False  # models on GPUs, leaves in fp16
    backend: str = "auto"  # of the front model's own graphs
    target: str | None = None  # folder of engines, for TensorRT leaves
    instances: int = 1  # of the front model, a GPU or on the CPU
    batch: int = 8
    waiting: int = 32
    wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in LEAVES:
            raise InputError(
                f"{self.name!r} is no name for the front model. Give --name: letters, digits, '.', '_' and '-', "
                f"and none of {', '.join(LEAVES)}."
            )
        if self.leaves not in KINDS:
            raise InputError(f"leaves is {self.leaves!r}. Choose one of: {', '.join(KINDS)}.")
        if self.leaves == TENSORRT and not self.gpu:
            raise InputError("TensorRT leaves run on a GPU. Give --gpu, or --leaves onnxruntime.")

    @property
    def models(self) -> list[str]:
        """The front first."""
        return [self.name, *(LEAVES if self.leaves != NONE else ())]


def write_repository(
    bundle: Path, repository: Path, wish: Wish, progress: Progress = lambda done, total: None
) -> Bundle:
    """Written beside its place, then renamed. Files of the bundle are linked where they can be, else copied.

    A repository that this function wrote, and nobody changed, is replaced. Raises InputError; then all is as it was.
    """
    target = repository.resolve()
    _check_replaceable(target)
    read = Bundle.read(bundle, progress=progress)
    if target == read.path.resolve() or read.path.resolve() in target.parents:
        raise InputError(f"{repository} lies in the bundle. Give another folder.")
    leaves = _leaves(read, wish)
    picture, sample = sample_of(load(bundle, backend="onnxruntime"))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    beside.mkdir()
    try:
        placed = _Placed(beside, read)
        _front(placed, read, wish, leaves)
        for leaf, parts in leaves.items():
            _leaf(placed, leaf, parts, wish)
        sample = {"model": wish.name, "models": wish.models, **sample}
        placed.bytes("sample.png", picture)
        placed.text("sample.json", json.dumps(sample, indent=1, ensure_ascii=False) + "\n")
        for name in ("README.md", "client.py", "probe.py"):
            placed.text(name, _template(name, wish, read))
        about = {"format": FORMAT, "created_by": f"pixelrt {__version__}", "bundle": read.sha256}
        (beside / ABOUT).write_text(
            json.dumps({**about, "files": placed.files}, indent=1) + "\n", encoding="utf-8"
        )
        _replace(target, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read


@dataclass(frozen=True)
class _Leaf:
    """A leaf's config and its files, by their names in the version's folder."""

    config: config.Leaf
    files: dict[str, Path]
    activations: str


def _leaves(bundle: Bundle, wish: Wish) -> dict[str, _Leaf]:
    if wish.leaves == NONE:
        return {}
    if wish.leaves == TENSORRT:
        engines = _engines(bundle, wish.target)
        return {
            name: _Leaf(
                config.tensorrt_leaf(name, engines.records[name], wish.batch),
                {"model.plan": engines.path(name)},
                engines.records[name].activations,
            )
            for name in LEAVES
        }
    activations = "float16" if wish.gpu else "float32"
    found = {}
    for name in LEAVES:
        file = bundle.graph(name, activations=activations)
        outside = external_locations(file.path.read_bytes())
        # A folder of the model's name: how Triton has models of several files.
        files = {"model.onnx/model.onnx": file.path, **{f"model.onnx/{o}": bundle.file(o) for o in outside}}
        found[name] = _Leaf(config.onnx_leaf(name, file, wish.batch), files, activations)
    return found


def _engines(bundle: Bundle, target: str | None) -> Engines:
    """Raises InputError where there are none, several to choose from, or some that Triton cannot run."""
    there = sorted(file.parent.name for file in (bundle.path / ENGINES).glob(f"*/{LIST}"))
    if target is None and len(there) != 1:
        what = (
            f"engines for {', '.join(there)}. Choose with --target"
            if there
            else "no engines. Build them first"
        )
        raise InputError(f"{bundle.path} has {what}: pixelrt build {bundle.path}")
    engines = read_engines(bundle.path / ENGINES / (target or there[0]))
    for name in LEAVES:
        record = engines.records.get(name)
        if record is None:
            raise InputError(
                f"{engines.folder} has no engine for {name}. Build it first: pixelrt build {bundle.path}"
            )
        if record.flavour != FLAVOURS[0]:
            raise InputError(
                f"{engines.folder} holds engines of {record.flavour}, which Triton's TensorRT backend does not run. "
                "Build with --backend tensorrt, or take --leaves onnxruntime."
            )
        if engines.path(name).stat().st_size != record.bytes:
            raise InputError(f"{engines.path(name)} is not the file that was built. Build it again.")
    return engines


class _Placed:
    """Files that are put into a repository; `files` lists them, by the SHA-256 of those that somebody may edit."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        self.root, self.files = root, dict[str, str]()
        self._links = _can_link(bundle.path / MANIFEST, root)

    def text(self, name: str, text: str) -> None:
        self.bytes(name, text.encode("utf-8"))

    def bytes(self, name: str, data: bytes) -> None:
        self._path(name).write_bytes(data)
        self.files[name] = hashlib.sha256(data).hexdigest()

    def all_of(self, folder: str, files: dict[str, Path]) -> None:
        """Links, or copies."""
        if not self._links:
            check_room(self.root, sum(path.stat().st_size for path in files.values()))
        for name, path in files.items():
            place = self._path(f"{folder}/{name}")
            if self._links:
                os.link(path.resolve(), place)
            else:
                shutil.copyfile(path, place)
            self.files[f"{folder}/{name}"] = ""

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _can_link(file: Path, folder: Path) -> bool:
    """Whether a file of the bundle can have a second name there: the same file system, and one that has links."""
    try:
        os.link(file.resolve(), folder / ABOUT)
    except OSError:
        return False
    (folder / ABOUT).unlink()
    return True


def _front(placed: _Placed, bundle: Bundle, wish: Wish, leaves: dict[str, _Leaf]) -> None:
    parameters = {"backend": wish.backend, "leaves": MODELS if leaves else IN_PROCESS}
    if leaves:
        parameters["activations"] = leaves[LEAVES[0]].activations
    names = [MANIFEST, *bundle.manifest["files"]]
    inside = {name: bundle.file(name) for name in names}
    if wish.gpu:
        engines = [path for path in (bundle.path / ENGINES).glob("*/*") if not path.name.startswith(".")]
        inside |= {path.relative_to(bundle.path).as_posix(): path for path in engines}
    text = config.front_config(
        wish.name, batch=wish.batch, waiting=wish.waiting, wait_ms=wish.wait_ms, instances=wish.instances,
        gpu=wish.gpu, parameters=parameters,
    )  # fmt: skip
    placed.text(f"{wish.name}/config.pbtxt", text)
    placed.text(f"{wish.name}/1/model.py", _template("model.py", wish, bundle))
    placed.all_of(f"{wish.name}/1/bundle", inside)


def _leaf(placed: _Placed, name: str, leaf: _Leaf, wish: Wish) -> None:
    placed.text(f"{name}/config.pbtxt", config.leaf_config(leaf.config, gpu=wish.gpu))
    placed.all_of(f"{name}/1", leaf.files)


def _template(name: str, wish: Wish, bundle: Bundle) -> str:
    text = (files("pixelrt.triton") / "files" / name).read_text(encoding="utf-8")
    load_models = " ".join(f"--load-model={model}" for model in reversed(wish.models))
    told = {
        "NAME": wish.name,
        "LEAVES": wish.leaves,
        "LOAD": load_models,
        "FAMILY": bundle.manifest["family"],
    }
    told |= {"BUNDLE": bundle.sha256, "VERSION": __version__, "EXTRA": "gpu" if wish.gpu else "cpu"}
    for key, value in told.items():
        text = text.replace(f"@{key}@", value)
    return text


# ---- what may be replaced ---------------------------------------------------------------------------------


def _check_replaceable(target: Path) -> None:
    """Raises InputError unless there is nothing, or a repository as `write_repository` left it."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    refusal = f"{target} exists and is no model repository of pixelrt. Give a new folder; tritonserver takes several."
    if not (target / ABOUT).is_file():
        raise InputError(refusal)
    try:
        about = json.loads((target / ABOUT).read_bytes())
        listed = {str(name): str(sha256) for name, sha256 in about["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(refusal) from None
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_dir() or name == ABOUT or "__pycache__" in path.parts:
            continue
        if name not in listed:
            raise InputError(
                f"{target} holds {name}, which pixelrt did not write. Move it, or give a new folder."
            )
        if listed[name] and hashlib.sha256(path.read_bytes()).hexdigest() != listed[name]:
            raise InputError(f"{path} was changed since pixelrt wrote it. Move it, or give a new folder.")


def _replace(target: Path, beside: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
