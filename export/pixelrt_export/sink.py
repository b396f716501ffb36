"""Where a family writes: graphs by name, the token table, the tokenizer, its part of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.graph import Graph, Product, plain_product
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.plan import Model, Settings, plan, wants_shortlist
from pixelrt_export.quantize.records import Record
from pixelrt_export.weight_file import WeightFile
from pixelrt_export.work import Work

# Of what no quantiser touches: biases, norms, embeddings, projectors, scales.
STORAGE = dict.fromkeys(("fp16", "int8", "int4", "nf4"), "float16") | {"fp32": "float32"}
ACTIVATIONS = {"float32": "fp32", "float16": "fp16"}
WEIGHTS, TABLE = "weights.data", "embeddings.bin"
SLAB = 1 << 23  # values of the token table that are converted at once


@dataclass
class Sink:
    folder: Path
    precision: Mapping[str, str]  # stage -> one of `export.CHOICES`
    weights: WeightFile
    settings: Settings
    records: Sequence[Record]  # to calibrate with
    sources: Mapping[str, Checkpoint]  # what stands before the names of its files -> what is read
    work: Work
    answered: Sequence[Record] = ()  # questions with their answers, which a runtime may draft from
    products: dict[str, Product] = field(default_factory=dict)  # stage -> how its linear layers multiply
    manifest: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: [WEIGHTS])

    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256 of every config and weight file of the sources."""

        def make() -> dict[str, str]:
            sizes = {
                (prefix, name): size
                for prefix, one in self.sources.items()
                for name, size in one.files().items()
            }
            found, before, total = {}, 0, sum(sizes.values())
            for (prefix, name), size in sizes.items():

                def read(done: int, before: int = before) -> None:
                    self.settings.progress("checkpoint hashed", before + done, total)

                found[prefix + name] = self.sources[prefix].sha256(name, read)
                before += size
            return found

        hashes: dict[str, str] = self.work.once("hashes", make)
        return hashes

    def quantise(self, model: Model) -> None:
        """Decide how the linear layers of each stage are stored; before the first graph, after the token table."""
        self.products, about = plan(
            self.precision, self.settings, model, self.records, self.work, self.weights
        )
        if about:
            self.manifest["quantization"] = about

    def has_shortlist(self, config: LanguageConfig) -> bool:
        """Whether this language model has a graph with `quantize.shortlist` too."""
        return wants_shortlist(self.precision, self.settings, config)

    def graph(
        self,
        name: str,
        stage: str,
        opset: int,
        build: Callable[[Graph], None],
        activations: Iterable[str] = ACTIVATIONS,
        **about: str,
    ) -> None:
        """Write graph `name` with fp32 and with fp16 activations, or one of them, over the same stored weights."""
        files: list[dict[str, str]] = []
        taps: dict[str, str] = {}
        for kind in activations:
            file = f"{name}.{ACTIVATIONS[kind]}.onnx"
            storage = STORAGE[self.precision[stage]]
            product = self.products.get(stage, plain_product)
            g = Graph(name, self.weights, activations=kind, storage=storage, opset=opset, product=product)
            build(g)
            if files and taps != g.taps:
                raise ValueError(f"{name}: the two spellings name their places differently")
            taps = g.taps
            g.save(self.folder / file)
            files.append({"file": file, "activations": kind})
            self.names.append(file)
        self.graphs[name] = {
            "stage": stage,
            "opset": opset,
            **about,
            "inputs": g.inputs,
            "outputs": g.outputs,
            "taps": taps,
            "files": files,
        }

    def text(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        self.names.append(name)

    def token_table(self, *parts: np.ndarray) -> None:
        """`embeddings.bin`: the token table (V, H), its rows in one or more parts, in 16 bits, or in 32 where 16
        would change a value of it."""
        dtype = table_dtype(parts, self.precision["language"])

        def write(path: Path) -> None:
            with path.open("wb") as file:
                for rows in slabs(parts):
                    (rows if dtype == "bfloat16" else rows.astype(dtype)).tofile(file)

        self.work.file(TABLE, write)
        self.names.append(TABLE)
        shape = [sum(len(part) for part in parts), parts[0].shape[1]]
        self.manifest["embeddings"] = {"file": TABLE, "dtype": dtype, "shape": shape}


def table_dtype(parts: tuple[np.ndarray, ...], precision: str) -> str:
    """The narrowest faithful type of a token table.

    bfloat16 stays as it is. fp32 rows become float16 where that is exact, or where precision fp16 asks for it.
    """
    if all(part.dtype.name == "bfloat16" for part in parts):
        return "bfloat16"
    exact = finite = True
    for rows in slabs(parts):
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        exact = exact and bool((half.astype(np.float32) == rows.astype(np.float32)).all())
        finite = finite and bool(np.isfinite(half).all())
    return "float16" if exact or (precision != "fp32" and finite) else "float32"


def slabs(parts: tuple[np.ndarray, ...]) -> Iterator[np.ndarray]:
    """A few rows at a time."""
    for part in parts:
        step = max(1, SLAB // part.shape[1])
        for at in range(0, len(part), step):
            yield part[at : at + step]
