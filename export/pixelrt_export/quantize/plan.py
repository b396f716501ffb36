"""From precisions to products: what is calibrated on which pictures, and how each linear layer then multiplies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixelrt_export.graph import Graph, Make, Product
from pixelrt_export.graphs.language import Tensor
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.blocks import Blocks, block_of, round_blocks
from pixelrt_export.quantize.language import LanguageRounding, Text
from pixelrt_export.quantize.nf4 import BLOCK as NF4_BLOCK
from pixelrt_export.quantize.nf4 import nf4_product
from pixelrt_export.quantize.probe import Probe
from pixelrt_export.quantize.products import int4_product, int8_product, int8_weight_product
from pixelrt_export.quantize.ranges import input_steps
from pixelrt_export.quantize.records import Record
from pixelrt_export.quantize.shortlist import NEAR, near_product, whole_product
from pixelrt_export.weight_file import WeightFile
from pixelrt_export.work import Work

ROUNDED = ("int8", "int4", "nf4")
LANGUAGE_LAYERS = "language.layers."  # what int8, int4 and nf4 round: not what follows them
HEAD = "language.lm_head"  # unless it is asked for
SHORTLIST_FROM = 16 << 20  # bytes of a head in float32; a smaller one lies in the processor's cache
Progress = Callable[[str, float, float], None]  # what, done, of how many


@dataclass(frozen=True)
class Settings:
    """calib: folder of pictures. block: of int4. keep: layers that stay in 16 bits, by name or by the beginning of it.

    calibrated: round int4 by what the layers read of the pictures; else each weight to its nearest step. head: `int8`
    or `int4`, in nearest steps, for the language model's head too; it stays in 16 bits without.
    """

    calib: Path | None = None
    block: int = 32
    calibrated: bool = True
    keep: frozenset[str] = frozenset()
    head: str = ""
    progress: Progress = lambda what, done, total: None

    def kept(self, name: str) -> bool:
        """`language.layers.3` keeps `language.layers.3.q_proj`."""
        return any(name == kept or name.startswith(f"{kept}.") for kept in self.keep)


class Reader(Protocol):
    """What a family's graphs read."""

    def picture(self, record: Record) -> dict[str, np.ndarray]:
        """Inputs of the encoder."""
        ...

    def text(self, record: Record, encoded: Mapping[str, np.ndarray]) -> Text:
        """What the language model reads, given the encoder's outputs."""
        ...


@dataclass(frozen=True)
class Model:
    """What the quantisers need of a family. encoder_layers: how the names of those layers begin that int8 rounds."""

    encoder: Callable[[Graph], None]
    encoder_opset: int
    encoder_layers: str
    tensor: Tensor
    language: LanguageConfig
    reader: Reader


def calibrates(precision: Mapping[str, str], settings: Settings) -> bool:
    """Whether pictures are read."""
    return precision["encoder"] == "int8" or (precision["language"] == "int4" and settings.calibrated)


def wants_shortlist(precision: Mapping[str, str], settings: Settings, config: LanguageConfig) -> bool:
    """Whether a graph with `quantize.shortlist` pays: behind rounded layers a head in 16 bits, larger than a cache."""
    large = 4 * config.hidden * config.vocab >= SHORTLIST_FROM
    return large and precision["language"] in ROUNDED and not rounds_head(settings)


def rounds_head(settings: Settings) -> bool:
    return bool(settings.head) and not settings.kept(HEAD)


def plan(
    precision: Mapping[str, str],
    settings: Settings,
    model: Model,
    records: Sequence[Record],
    work: Work,
    weights: WeightFile,
) -> tuple[dict[str, Product], dict[str, Any]]:
    """Stage -> product, and what the manifest says of it.

    records: to calibrate with, where that is wanted. work, weights: what an earlier run has found out.
    """
    products: dict[str, Product] = {}
    about: dict[str, Any] = {}
    if records:
        about["calibration"] = {"pictures": len({r.image for r in records}), "questions": len(records)}
    if precision["encoder"] == "int8":
        steps = work.once("input steps", lambda: _input_steps(settings, model, records))
        products["encoder"] = int8_product(steps, steps.__contains__)
        about["encoder"] = {"form": "int8", "rounds": "weights and activations"}
    if precision["language"] in ROUNDED:

        def chosen(name: str) -> bool:
            return name.startswith(LANGUAGE_LAYERS) and not settings.kept(name)

        if precision["language"] == "int8":
            products["language"] = int8_weight_product(chosen)
            about["language"] = {"form": "int8", "rounds": "weights"}
        elif precision["language"] == "nf4":
            products["language"] = nf4_product(chosen)
            about["language"] = {"form": "nf4", "rounds": "weights", "block": NF4_BLOCK}
        else:
            rounding = _rounding(settings, model, records, chosen, Kept(work, weights))
            products["language"] = int4_product(rounding, chosen)
            how = "calibrated" if settings.calibrated else "nearest"
            about["language"] = {"form": "int4", "rounds": "weights", "block": settings.block, "by": how}
        if wants_shortlist(precision, settings, model.language):
            products["language"] = with_shortlist(products["language"])
        if rounds_head(settings):
            products["language"] = _with_head(products["language"], settings)
            about["head"] = {"form": settings.head, "rounds": "weights"}
    if settings.keep:
        about["kept"] = sorted(settings.keep)
    return products, about


def _with_head(layers: Product, settings: Settings) -> Product:
    if settings.head == "int8":
        return with_product(layers, HEAD, int8_weight_product(HEAD.__eq__))
    return with_product(layers, HEAD, int4_product(_nearest(settings), HEAD.__eq__))


def with_shortlist(layers: Product) -> Product:
    return with_product(with_product(layers, NEAR, near_product), HEAD, whole_product)


def with_product(others: Product, name: str, product: Product) -> Product:
    """`product` for the linear layer `name`."""

    def multiply(g: Graph, x: str, layer: str, weight: Make) -> str:
        return (product if layer == name else others)(g, x, layer, weight)

    return multiply


@dataclass(frozen=True)
class Kept:
    """`quantize.language.Memory` in the work folder and the weight file."""

    work: Work
    weights: WeightFile

    def known(self, name: str) -> Blocks | None:
        values, scales = f"{name}.weight.int4", f"{name}.scale"
        if values not in self.weights or scales not in self.weights:
            return None
        return Blocks(self.weights.read(values), self.weights.read(scales))

    def load(self) -> tuple[int, dict[str, np.ndarray]] | None:
        return self.work.kept_arrays()

    def save(self, layer: int, arrays: Callable[[], dict[str, np.ndarray]], size: int) -> None:
        self.work.keep_arrays(layer, arrays, size, self.weights.size)


def _input_steps(settings: Settings, model: Model, records: Sequence[Record]) -> dict[str, float]:
    probe = Probe(model.encoder, model.encoder_opset)
    names = [n for n in probe.products if n.startswith(model.encoder_layers) and not settings.kept(n)]
    return input_steps(probe, _pictures(records, model.reader, settings.progress), names, settings.progress)


def _rounding(
    settings: Settings, model: Model, records: Sequence[Record], chosen: Callable[[str], bool], memory: Kept
) -> Callable[[str, Make], Blocks | None]:
    if settings.calibrated:
        by_layer = LanguageRounding(
            model.tensor,
            model.language,
            lambda: _texts(records, model, settings.progress),
            settings.block,
            lambda name: not chosen(name),
            lambda done, total: settings.progress("language layers rounded", done, total),
            memory,
        )
        return lambda name, weight: by_layer(name)
    return _nearest(settings)


def _nearest(settings: Settings) -> Callable[[str, Make], Blocks | None]:
    def nearest(name: str, weight: Make) -> Blocks | None:
        values = weight()
        block = block_of(len(values), settings.block)
        return round_blocks(values, block) if block else None

    return nearest


def _pictures(records: Sequence[Record], reader: Reader, progress: Progress) -> list[dict[str, np.ndarray]]:
    """One for each file."""
    files = {record.image: record for record in records}
    found = []
    for record in files.values():
        found.append(reader.picture(record))
        progress("pictures read", len(found), len(files))
    return found


def _texts(records: Sequence[Record], model: Model, progress: Progress) -> list[Text]:
    probe = Probe(model.encoder, model.encoder_opset, tapped=False)
    found = []
    for record in records:
        found.append(model.reader.text(record, probe(model.reader.picture(record))))
        progress("questions encoded", len(found), len(records))
    return found
