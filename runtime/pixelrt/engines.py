"""Engines on disk: what each was built from, and whether it may be loaded here.

    BUNDLE/engines/TARGET/engines.json      this module's; written after every engine, beside and renamed
    BUNDLE/engines/TARGET/GRAPH.engine      GRAPH is encoder, language or pixel_decoder
    BUNDLE/engines/TARGET/timing.cache      the builder's memory of this architecture; may be deleted

TensorRT-RTX's engines lie in TARGET.tensorrt-rtx. `find_engines` gives the folder for this machine, `check` refuses
what must not be deserialised: TensorRT itself may end the process on it. Nothing here imports TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.bundle import Bundle, sha256_of
from pixelrt.errors import InputError
from pixelrt.manifest import Each
from pixelrt.manifest import check as check_form

FORMAT = 1
FOLDER, LIST = "engines", "engines.json"
RTX = "tensorrt-rtx"
# What a build and a verification leave in the folder of a target, half-written files of a power cut too.
OWN = re.compile(r"engines\.json|verdict\.json|timing\.cache|\.lock|\w+\.engine|\..+\.partial")
Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # least, best, most


@dataclass(frozen=True)
class Value:
    """An input or output of an engine. dtype: numpy's name; a string in shape is a size that may vary."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineRecord:
    """One engine file and all that it depends on."""

    graph: str  # what the runtime asks for: encoder, language, pixel_decoder
    source: str  # the manifest's graph that it was made from: language or language_compat, say
    file: str
    bytes: int
    sha256: str
    fingerprint: str  # of the graph and the weights it was built from, see `fingerprint_of`
    stands_for: str  # fingerprint of this bundle's graph; another one where a device refused that
    precision: str  # fp32, fp16, int8, int4
    activations: str  # float16 or float32
    flavour: str  # tensorrt or tensorrt-rtx
    version: str  # of TensorRT
    cuda: str  # major version that TensorRT was made for, 12 or 13; "" where it does not say
    architecture: str  # sm_87
    kernels: (
        str | None
    )  # source hash of our kernels that run inside of the engine; None: there are none in it
    # Profile -> input -> range; profiles have TensorRT's order. Inputs of one shape only are in none of them.
    profiles: dict[str, dict[str, Range]]
    cache_length: int | None  # M of a cache written in place
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    layers: int
    seconds: float
    refused: str = ""  # why a smaller precision was not built, TensorRT's words


@dataclass(frozen=True)
class Engines:
    """All engines of one target."""

    folder: Path
    target: str
    records: dict[str, EngineRecord]

    def path(self, graph: str) -> Path:
        return self.folder / self.records[graph].file


@dataclass(frozen=True)
class Here:
    """What this machine would run an engine with."""

    flavour: str
    version: str
    cuda: str
    architecture: str | None  # of the GPU; None where there is none
    kernels: str | None = None  # source hash of the kernels at hand


def fingerprint_of(bundle: Bundle, graph: str, activations: str) -> str:
    """SHA-256 over the hashes of a graph's file and of the weight files, as the manifest has them.

    Weight files are those that no other part of the manifest claims: a new tokenizer leaves engines as they are.
    """
    files = bundle.manifest["files"]
    name = bundle.graph(graph, activations=activations).path.name
    weights = [other for other in sorted(files) if other.endswith(".data")]
    lines = (f"{other} {files[other]['sha256']}\n" for other in [name, *weights])
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---- the list ---------------------------------------------------------------------------------------------

_RANGE = ([int], [int], [int])
_VALUES = Each({"dtype": str, "shape": [object]})
FORM = {
    "target": str,
    "engines": Each(
        {
            **dict.fromkeys(("source", "file", "sha256", "fingerprint", "stands_for", "precision"), str),
            **dict.fromkeys(("activations", "flavour", "version", "cuda", "architecture", "refused"), str),
            **dict.fromkeys(("bytes", "kernels", "cache_length", "seconds"), object),
            "layers": int,
            "profiles": Each(Each(_RANGE)),
            "inputs": _VALUES,
            "outputs": _VALUES,
        }
    ),
}


def read_engines(folder: str | os.PathLike[str]) -> Engines:
    """The list in BUNDLE/engines/TARGET. Raises InputError where there is none, or one that cannot be read."""
    folder = Path(folder)
    file = folder / LIST
    mend = f"Run: {_command_of(folder)}"
    if not file.is_file():
        raise InputError(f"{folder} holds no engines ({LIST} is missing). {mend}")
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}). Delete {folder}. {mend}") from None
    number = document.get("format") if isinstance(document, dict) else None
    if number != FORMAT:
        raise InputError(f"{file} has format {number!r}; this pixelrt reads {FORMAT}. {mend}")
    check_form(document, FORM, str(file))
    records = {graph: _record(graph, entry) for graph, entry in document["engines"].items()}
    for record in records.values():
        if type(record.bytes) is not int:  # of any size, which a form cannot say
            raise InputError(f"{file}: bytes is {record.bytes!r}, wanted a whole number. {mend}")
        if Path(record.file).name != record.file:
            raise InputError(f"{file} names {record.file!r}, which lies elsewhere. Do not use these engines.")
    return Engines(folder, document["target"], records)


def write_engines(engines: Engines) -> None:
    """Write the list beside itself, then put it in its place: a reader finds the old one or the new one."""
    entries = {graph: dataclasses.asdict(record) for graph, record in engines.records.items()}
    for entry in entries.values():
        del entry["graph"]
    document = {"format": FORMAT, "target": engines.target, "engines": entries}
    beside = engines.folder / f".{LIST}.partial"
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(document, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(engines.folder / LIST)


def _record(graph: str, entry: Mapping[str, Any]) -> EngineRecord:
    known = {field.name for field in dataclasses.fields(EngineRecord)}
    fields = {name: value for name, value in entry.items() if name in known}
    for side in ("inputs", "outputs"):
        fields[side] = {name: Value(v["dtype"], tuple(v["shape"])) for name, v in entry[side].items()}
    fields["profiles"] = {
        profile: {name: tuple(map(tuple, shapes)) for name, shapes in inputs.items()}
        for profile, inputs in entry["profiles"].items()
    }
    return EngineRecord(graph=graph, **fields)


# ---- may it be loaded here ----------------------------------------------------------------------------------


def check(engines: Engines, graph: str, here: Here, bundle: Bundle) -> Path:
    """The file of `graph`, whole and made for this machine and this bundle.

    Raises InputError: what is off, and the command that mends it. The whole file is read once, to hash it.
    """
    mend = f"Run: {_command_of(engines.folder)}"
    if graph not in engines.records:
        raise InputError(f"{engines.folder} has no engine for {graph}: its build did not finish. {mend}")
    record, file = engines.records[graph], engines.path(graph)
    _check_here(record, here, file, bundle)
    wanted = fingerprint_of(bundle, record.source, record.activations)
    if record.stands_for != wanted:
        raise InputError(f"{file} was built from another export of this bundle. {mend}")
    if not file.is_file():
        raise InputError(f"{file} is missing. {mend}")
    size = file.stat().st_size
    if size != record.bytes:
        what = "is cut off" if size < record.bytes else "is not the file that was built"
        raise InputError(
            f"{file} {what}: it has {size:,} bytes of {record.bytes:,}. {mend} (or copy it again)"
        )
    if sha256_of(file) != record.sha256:
        raise InputError(
            f"{file} was altered: its SHA-256 is not the one in {LIST}. {mend} (or copy it again)"
        )
    return file


def _check_here(record: EngineRecord, here: Here, file: Path, bundle: Bundle) -> None:
    mend = f"Run here: {build_command(bundle.path, 'auto', here.flavour)}"
    if here.architecture is None:
        raise InputError(
            f"{file} needs an NVIDIA GPU ({record.architecture}), and none is found here. "
            "Run it on that GPU, or use --backend onnxruntime."
        )
    if record.flavour != here.flavour:
        raise InputError(f"{file} was built by {record.flavour}; {here.flavour} is loaded here. {mend}")
    if record.architecture != here.architecture:
        raise InputError(
            f"{file} was built for {record.architecture}; this GPU is {here.architecture}. {mend}"
        )
    if record.version != here.version:
        raise InputError(
            f"{file} was built by {record.flavour} {record.version}; {here.version} is installed here, "
            f"and engines work with the version that built them alone. {mend}"
        )
    if record.cuda and here.cuda and record.cuda != here.cuda:
        raise InputError(f"{file} was built for CUDA {record.cuda}; CUDA {here.cuda} is here. {mend}")
    if record.kernels is not None and record.kernels != here.kernels:
        got = "no kernels" if here.kernels is None else f"kernels {here.kernels[:12]}"
        raise InputError(f"{file} holds kernels {record.kernels[:12]}; {got} are here. {mend}")


def find_engines(bundle: Bundle, here: Here) -> Engines:
    """The engines of this bundle that were made for this flavour and this GPU; of several targets the newest.

    Where there are none for it, the newest others (`check` then says what is wrong with them). Raises InputError
    where there are none at all.
    """
    lists = sorted((bundle.path / FOLDER).glob(f"*/{LIST}"), key=lambda file: file.stat().st_mtime)
    found = [read_engines(file.parent) for file in reversed(lists)]
    fitting = [engines for engines in found if _fits(engines, here)]
    if not found:
        command = build_command(bundle.path, "auto", here.flavour)
        raise InputError(f"{bundle.path} has no engines. Run here: {command}")
    return (fitting or found)[0]


def _fits(engines: Engines, here: Here) -> bool:
    made_for = {(record.flavour, record.architecture) for record in engines.records.values()}
    return (here.flavour, here.architecture) in made_for


def folder_of(bundle: Path, target: str, flavour: str) -> Path:
    return bundle / FOLDER / (target + (f".{RTX}" if flavour == RTX else ""))


def foreign_to(bundle: Path) -> list[str]:
    """What lies in a bundle's folder of engines and is none of a build's files, by its place in the bundle."""
    folder = bundle / FOLDER
    if not folder.exists() and not folder.is_symlink():
        return []
    if folder.is_symlink() or not folder.is_dir():
        return [FOLDER]
    found = []
    for place in sorted(folder.iterdir()):
        if place.is_symlink() or not place.is_dir():
            found.append(place)
        else:
            found += [f for f in sorted(place.iterdir()) if not (f.is_file() and OWN.fullmatch(f.name))]
    return [path.relative_to(bundle).as_posix() for path in found]


def build_command(bundle: Path, target: str, flavour: str) -> str:
    words = ["pixelrt", "build", str(bundle), *([] if target == "auto" else ["--target", target])]
    return shlex.join(words + (["--backend", RTX] if flavour == RTX else []))


def _command_of(folder: Path) -> str:
    target, is_rtx, _ = folder.name.partition(f".{RTX}")
    return build_command(folder.parent.parent, target, RTX if is_rtx else "")
