"""What a bundle's bytes stand for, against what the checkpoint says they should: tensor by tensor, tile by tile.

The family writes its graphs once more, but into nothing: each tensor it would store, unrounded, is compared with the
one that lies in the bundle under the same name, of which rounded weights are read back by the rules of
docs/precision.md. One tensor is in memory at a time. This sees a wrong byte where a stage's output, which mixes all
of them, does not; what the tensors are used for is seen by the other comparisons only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import SHORTLIST

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.families import family_of
from pixelrt_export.graph import Graph
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.nf4 import dequantise
from pixelrt_export.quantize.plan import Model, Settings
from pixelrt_export.quantize.shortlist import MIDDLE
from pixelrt_export.sink import WEIGHTS, Sink
from pixelrt_export.verify.comparison import STORED_LIMITS, TILE_LIMITS, Finding, cosine, relative_error
from pixelrt_export.weight_file import Slot, unpacked

TILE = 32  # rows and columns
BAND = 16 * TILE
Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class Place:
    kind: int  # onnx.TensorProto data type
    shape: tuple[int, ...]
    offset: int
    length: int


def places_of(bundle: Bundle) -> dict[str, Place]:
    """Every tensor in the weight file, by name."""
    found: dict[str, Place] = {}
    for graph in bundle.manifest["graphs"].values():
        for entry in graph["files"]:
            model = onnx.load(bundle.file(entry["file"]), load_external_data=False)
            for tensor in model.graph.initializer:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    where = {pair.key: pair.value for pair in tensor.external_data}
                    found[tensor.name] = Place(
                        tensor.data_type, tuple(tensor.dims), int(where["offset"]), int(where["length"])
                    )
    return found


@dataclass
class ComparingWeights:
    """In place of a weight file: `put` compares and stores nothing."""

    path: Path
    places: Mapping[str, Place]
    stage: str = ""
    progress: Progress = lambda what, done, total: None
    findings: list[Finding] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Rounded weights are two tensors in the bundle and one here."""
        self.total = sum(not name.endswith((".scale", ".absmax")) for name in self.places)

    def __contains__(self, name: str) -> bool:
        return False

    def put(self, name: str, dtype: str, make: Callable[[], np.ndarray]) -> Slot:
        wanted = make()
        # A head stored token by token is asked for as such, and as a weight.
        plain = name.removesuffix(".rows") + ".weight" if name.endswith(".rows") else name
        if plain not in self.seen:
            self.seen.add(plain)
            form, found = self._read(name, wanted.shape)
            self._compare(name, form, found, wanted)
            self.progress("tensors compared", len(self.seen), self.total)
        return Slot(name, dtype, wanted.shape, 0, 0)

    def _read(self, name: str, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
        """(precision, the numbers that are meant); an empty array where the bundle has no such tensor."""
        if name in self.places:
            array = self._array(name)
            return "fp32" if array.dtype == np.float32 else "fp16", array
        rows = name.removesuffix(".weight") + ".rows"
        if rows in self.places:
            return "fp16", self._array(rows).T
        absmax = name.removesuffix(".weight") + ".absmax"
        if f"{name}.nf4" in self.places and absmax in self.places:
            outputs, inputs = shape[::-1]
            found = dequantise(self._array(f"{name}.nf4"), self._array(absmax), (outputs, inputs))
            return "nf4", found.T
        scale = name.removesuffix(".weight") + ".scale"
        for kind, form in (("int4", "int4"), ("int8", "int8"), ("uint8", "int8")):
            if f"{name}.{kind}" in self.places and scale in self.places:
                values, scales = self._array(f"{name}.{kind}"), self._array(scale).astype(np.float32)
                if kind == "uint8":
                    values = (values ^ MIDDLE).view(np.int8)
                if scales.ndim == 2:
                    scales = np.repeat(scales, len(values) // len(scales), axis=0)
                return form, values * scales
        return "fp32", np.empty(0, np.float32)

    def _array(self, name: str) -> np.ndarray:
        place = self.places[name]
        if place.kind == onnx.TensorProto.INT4:
            data = np.fromfile(self.path, np.uint8, place.length, offset=place.offset)
            return unpacked(data, place.shape)
        kind = helper.tensor_dtype_to_np_dtype(place.kind)
        if place.length == 0:
            return np.empty(place.shape, kind)
        return np.memmap(self.path, kind, "r", place.offset, place.shape)

    def _compare(self, name: str, form: str, found: np.ndarray, wanted: np.ndarray) -> None:
        error = relative_error(found, wanted)
        where, alike = f"stored {name}", cosine(found, wanted)
        self.findings.append(Finding(self.stage, where, error, alike, STORED_LIMITS[form], -1))
        if found.shape == wanted.shape and wanted.ndim == 2 and min(wanted.shape) >= TILE:
            tile = worst_tile(found, wanted)
            self.findings.append(Finding(self.stage, f"{where}, a tile", tile, alike, TILE_LIMITS[form], -1))


def worst_tile(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest |a - b| of a tile of TILE x TILE, by what a tile of the tensor measures on average, or this one."""
    rows, columns = (size // TILE * TILE for size in wanted.shape)
    sizes, differences = [], []
    for at in range(0, rows, BAND):  # in bands, for memory
        part = slice(at, min(at + BAND, rows)), slice(0, columns)
        a, b = (np.asarray(x[part], np.float32) for x in (found, wanted))
        for sums, x in ((sizes, b), (differences, a - b)):
            cut = np.square(x).reshape(len(x) // TILE, TILE, columns // TILE, TILE)
            sums.append(cut.sum((1, 3), dtype=np.float64))
    size, difference = np.concatenate(sizes), np.concatenate(differences)
    scale = np.maximum(size, size.mean())
    return float(np.sqrt((difference / np.where(scale, scale, 1)).max()))


class ComparingSink(Sink):
    """What a family writes to, which writes nothing."""

    weights: ComparingWeights  # type: ignore[assignment]

    def quantise(self, model: Model) -> None:
        pass

    def graph(
        self, name: str, stage: str, opset: int, build: Callable[[Graph], None], **about: object
    ) -> None:
        self.weights.stage = stage
        build(Graph(name, self.weights, activations="float32", storage="float32", opset=opset))

    def has_shortlist(self, config: LanguageConfig) -> bool:
        return SHORTLIST in self.bundle.manifest["graphs"]

    def text(self, name: str, text: str) -> None:
        pass  # what a text makes of prompts is compared

    def hashes(self) -> dict[str, str]:
        return {}

    def token_table(self, *parts: np.ndarray) -> None:
        self.manifest["embeddings"] = self.bundle.manifest["embeddings"]

    @property
    def bundle(self) -> Bundle:
        return Bundle.read(self.folder, verify=False)


def compare_stored(
    bundle: Bundle,
    checkpoint: Checkpoint,
    vision_tower: Path | None,
    progress: Progress = lambda what, done, total: None,
) -> list[Finding]:
    """One or two findings a tensor."""
    weights = ComparingWeights(bundle.path / WEIGHTS, places_of(bundle), progress=progress)
    family = family_of(str(checkpoint.config.get("model_type")))
    sink = ComparingSink(
        bundle.path,
        bundle.manifest["precision"],
        weights,  # type: ignore[arg-type]
        Settings(),
        (),
        family.sources(checkpoint, vision_tower),
        None,  # type: ignore[arg-type]
    )
    family.write_bundle(checkpoint, sink)
    return weights.findings
