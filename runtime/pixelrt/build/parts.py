"""What is to be built: each graph of a bundle in the spelling that this TensorRT takes, with its sizes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelrt.build.profiles import Sizes, profiles_of
from pixelrt.bundle import Bundle, GraphFile, Tensor
from pixelrt.engines import Range, Value, fingerprint_of
from pixelrt.errors import InputError
from pixelrt.onnx_file import external_bytes, operators
from pixelrt.tensorrt import Library

GRAPHS = ("encoder", "language", "pixel_decoder")
ITEM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Part:
    """One engine to be. source, stands_for: as in EngineRecord. weights, cache: bytes."""

    graph: str
    source: str
    stage: str
    precision: str
    file: GraphFile
    fingerprint: str
    stands_for: str
    profiles: dict[str, dict[str, Range]]
    cache_length: int | None
    weights: int
    cache: int

    @property
    def engine(self) -> str:
        return f"{self.graph}.engine"

    def values(self, tensors: Sequence[Tensor]) -> dict[str, Value]:
        """What the engine's list says of these inputs or outputs."""
        return {
            tensor.name: Value(
                self.file.activations if tensor.dtype == "activations" else tensor.dtype,
                tuple(self.cache_length if d == "M" and self.cache_length else d for d in tensor.shape),
            )
            for tensor in tensors
        }


def parts_of(
    bundle: Bundle,
    library: Library,
    sizes: Sizes,
    *,
    activations: str = "float16",
    only: Sequence[str] = (),
    stands_for: Bundle | None = None,
) -> list[Part]:
    """One part for each graph, or for those named. stands_for: the bundle that these will be engines of.

    Raises InputError where a graph holds operators that no TensorRT has.
    """
    unknown = set(only) - set(GRAPHS)
    if unknown:
        raise InputError(f"No graph {sorted(unknown)[0]!r}. Choose among: {', '.join(GRAPHS)}.")
    return [
        _part(bundle, graph, library, sizes, activations, stands_for or bundle)
        for graph in GRAPHS
        if graph in only or not only
    ]


def _part(
    bundle: Bundle, graph: str, library: Library, sizes: Sizes, activations: str, stands_for: Bundle
) -> Part:
    source = graph
    # In fp32 TensorRT has no attention kernel; the twin spells attention out.
    if graph == "language" and not (library.in_place and activations == "float16"):
        source = "language_compat"
    file = bundle.graph(source, activations=activations)
    stage = bundle.manifest["graphs"][source]["stage"]
    precision = bundle.manifest["precision"][stage]
    content = file.path.read_bytes()
    foreign = sorted(name for name in operators(content) if name.startswith("com.microsoft::"))
    if foreign:
        command = shlex.join(
            ["pixelrt", "export", "CHECKPOINT", str(bundle.path), f"--{_flag(stage)}", "int4"]
        )
        raise InputError(
            f"{stage} is stored in {precision}, with {', '.join(foreign)}, which TensorRT does not have. "
            f"Export it in int4: {command}"
        )
    in_place = file.cache == "in_place"
    caches = [tensor for tensor in file.inputs if tensor.name.startswith("past.")]
    rows = sum(int(t.shape[1]) * int(t.shape[3]) for t in caches)
    return Part(
        graph,
        source,
        stage,
        precision,
        file,
        fingerprint_of(bundle, source, activations),
        fingerprint_of(stands_for, source, activations),
        profiles_of(stage, file.inputs, sizes, empty=True),
        sizes.cache if in_place else None,
        external_bytes(content),
        rows * sizes.batch * sizes.cache * ITEM_BYTES[activations],
    )


def fallback_of(bundle: Bundle, other: Path) -> Bundle:
    """The bundle `other`, from which stages may be taken that a device refuses. Raises InputError: another model."""
    found = Bundle.read(other)
    own, its = (b.manifest.get("provenance", {}).get("files") for b in (bundle, found))
    if not own or own != its:
        raise InputError(
            f"{other} was not exported from the checkpoint of {bundle.path}. Give --fallback a bundle of the same one."
        )
    return found


def refusal(part: Part, bundle: Bundle, where: str, reasons: Sequence[str]) -> str:
    """The sentence for a graph that TensorRT does not take."""
    more = f", and {len(reasons) - 1} more like it" if len(reasons) > 1 else ""
    what = f"{where} refuses {part.source} in {part.precision}: {reasons[0]}{more}."
    if part.precision not in ("int8", "int4"):
        return f"{what} Run it with --backend onnxruntime, and report this."
    return f"{what} {fp16_ways(bundle, part.stage)}"


def fp16_ways(bundle: Bundle, stage: str) -> str:
    """How a stage of few bits is had in fp16."""
    path = shlex.quote(str(bundle.path))
    others = [
        f"--{_flag(other)} {kind}" for other, kind in bundle.manifest["precision"].items() if other != stage
    ]
    export = f"pixelrt export CHECKPOINT {path} --{_flag(stage)} fp16 {' '.join(others)}"
    return (
        f"Export that stage in fp16: {export}; or take it from a bundle of the same checkpoint in fp16: "
        f"pixelrt build {path} --fallback FP16_BUNDLE"
    )


def _flag(stage: str) -> str:
    return stage.replace("_", "-")
