"""`export_bundle`: the steps every family shares.

A bundle is written beside its destination and renamed when it is complete; a failed export leaves nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pixelrt import __version__
from pixelrt.bundle import Bundle, write_manifest
from pixelrt.errors import InputError
from pixelrt.manifest import MANIFEST

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.families import family_of
from pixelrt_export.graph import Graph, Product, plain_product
from pixelrt_export.quantize.plan import Model, Settings, plan
from pixelrt_export.weight_file import WeightFile

STAGES = ("encoder", "language", "pixel_decoder")
# Of what no quantiser touches: biases, norms, embeddings, projectors, scales.
STORAGE = dict.fromkeys(("fp16", "int8", "int4", "nf4"), "float16") | {"fp32": "float32"}
# What each flag of --precision means for the three stages.
MENU = {
    "fp32": ("fp32", "fp32", "fp32"),
    "fp16": ("fp16", "fp16", "fp16"),
    "int8": ("int8", "int8", "fp16"),
    "int4": ("fp16", "int4", "fp16"),
    "nf4": ("fp16", "nf4", "fp16"),
}
# What a stage can be stored in.
CHOICES = {
    "encoder": ("fp32", "fp16", "int8"),
    "language": ("fp32", "fp16", "int8", "int4", "nf4"),
    "pixel_decoder": ("fp32", "fp16"),
}
ACTIVATIONS = {"float32": "fp32", "float16": "fp16"}
WEIGHTS = "weights.data"

REJECTED = ".rejected"  # after the name of a bundle that did not pass

Progress = Callable[[str, int, int], None]  # what is being written, bytes done, bytes in all


class Verdict(Protocol):
    """What a gate says of a finished bundle; `verify.report.Report`."""

    @property
    def passed(self) -> bool: ...
    def sentence(self) -> str: ...
    def summary(self) -> dict[str, Any]: ...
    def write(self, folder: Path) -> tuple[str, ...]:
        """Its files, into the bundle; their names."""
        ...


class Rejected(RuntimeError):
    """A bundle did not pass its gate: it lies whole at `folder`, which is not where it was asked for."""

    def __init__(self, folder: Path, verdict: Any) -> None:
        super().__init__(
            f"{verdict.sentence()}. The bundle is {folder}, not blessed; its report.md says more."
        )
        self.folder, self.verdict = folder, verdict


@dataclass
class Sink:
    """Where a family writes: graphs by name, the token table, the tokenizer, its part of the manifest."""

    folder: Path
    precision: Mapping[str, str]  # stage -> one of its CHOICES
    weights: WeightFile
    settings: Settings
    products: dict[str, Product] = field(default_factory=dict)  # stage -> how its linear layers multiply
    manifest: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: [WEIGHTS])

    def quantise(self, model: Model) -> None:
        """Decide how the linear layers of each stage are stored; before the first graph, after the token table."""
        self.products, about = plan(self.precision, self.settings, model)
        if about:
            self.manifest["quantization"] = about

    def graph(self, name: str, stage: str, opset: int, build: Callable[[Graph], None], **about: str) -> None:
        """Write graph `name` with fp32 and with fp16 activations over the same stored weights."""
        files: list[dict[str, str]] = []
        taps: dict[str, str] = {}
        for activations, suffix in ACTIVATIONS.items():
            file = f"{name}.{suffix}.onnx"
            storage = STORAGE[self.precision[stage]]
            product = self.products.get(stage, plain_product)
            g = Graph(
                name, self.weights, activations=activations, storage=storage, opset=opset, product=product
            )
            build(g)
            if files and taps != g.taps:
                raise ValueError(f"{name}: the two spellings name their places differently")
            taps = g.taps
            g.save(self.folder / file)
            files.append({"file": file, "activations": activations})
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

    def token_table(self, rows: np.ndarray) -> None:
        """`embeddings.bin`: the token table (V, H) in 16 bits, or in 32 where 16 would change a value of it."""
        dtype, stored = sixteen_bits(rows, self.precision["language"])
        stored.tofile(self.folder / "embeddings.bin")
        self.names.append("embeddings.bin")
        self.manifest["embeddings"] = {"file": "embeddings.bin", "dtype": dtype, "shape": list(rows.shape)}


def sixteen_bits(rows: np.ndarray, precision: str) -> tuple[str, np.ndarray]:
    """The narrowest faithful form of a token table: (dtype name, array to write).

    bfloat16 stays as it is. fp32 rows become float16 where that is exact, or where precision fp16 asks for it.
    """
    if rows.dtype.name == "bfloat16":
        return "bfloat16", rows.view(np.uint16)
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    exact = bool((half.astype(np.float32) == rows.astype(np.float32)).all())
    if exact or (precision != "fp32" and np.isfinite(half).all()):
        return "float16", half
    return "float32", rows.astype(np.float32)


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    precision: str = "fp32",
    stages: Mapping[str, str] | None = None,
    vision_tower: str | Path | None = None,
    settings: Settings | None = None,
    gate: Callable[[Path], Verdict] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Export a checkpoint folder to a bundle folder and return the bundle's path.

    precision: of the stored weights, see MENU; fp32 changes nothing. stages: `encoder`, `language` or
    `pixel_decoder` -> a precision of its own. settings: of the quantisers. vision_tower: the CLIP folder, where it
    does not lie beside the checkpoint. An existing bundle at the destination is replaced once the new one is
    complete; any other folder there is left alone. gate: looks at the finished bundle before it gets its name; one
    that does not pass gets the name BUNDLE.rejected, and what stands at BUNDLE stays. Raises InputError, Rejected.
    """
    target = Path(bundle).resolve()  # through links: the folder itself is replaced
    chosen = _chosen(precision, stages or {})
    rejected = target.with_name(target.name + REJECTED)
    _check_target(target)
    if gate is not None:
        _check_target(rejected)
    opened = Checkpoint.open(Path(checkpoint))
    family = family_of(str(opened.config.get("model_type")))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        total = sum(opened.files().values())  # of the checkpoint; close enough for an estimate of time left
        with WeightFile(partial / WEIGHTS, lambda name, size: progress(name, size, total)) as weights:
            sink = Sink(partial, chosen, weights, settings or Settings())
            family.write_bundle(opened, sink, None if vision_tower is None else Path(vision_tower))
        progress(MANIFEST, total, total)
        head = {"name": target.name, "created_by": f"pixelrt {__version__}", "precision": chosen}
        if not stages:
            head["asked_precision"] = precision
        manifest = {**head, **sink.manifest, "graphs": sink.graphs}
        write_manifest(partial, manifest, sink.names)
        if gate is not None:
            verdict = gate(partial)
            names = [*sink.names, *verdict.write(partial)]
            write_manifest(partial, {**manifest, "verified": verdict.summary()}, names)
            if not verdict.passed:
                _replace(rejected, partial)
                raise Rejected(rejected, verdict)
        _replace(target, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Path(bundle)


def _chosen(precision: str, stages: Mapping[str, str]) -> dict[str, str]:
    """Stage -> precision."""
    if precision not in MENU:
        raise InputError(f"--precision is {precision!r}. Choose one of: {', '.join(MENU)}.")
    chosen = dict(zip(STAGES, MENU[precision], strict=True)) | dict(stages)
    for stage, wanted in chosen.items():
        if wanted not in CHOICES.get(stage, ()):
            choices = ", ".join(CHOICES.get(stage, ("nothing: there is no such stage",)))
            raise InputError(f"{stage} cannot be stored in {wanted!r}. Choose one of: {choices}.")
    return chosen


def _check_target(target: Path) -> None:
    """A folder that export may replace: none, an empty one, or a bundle with nothing else in it."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    refusal = f"{target} exists and is not a bundle; export does not overwrite it. Give another folder."
    try:
        listed = Bundle.read(target, verify=False).manifest["files"]
    except InputError:
        raise InputError(refusal) from None
    foreign = sorted(file.name for file in target.iterdir() if file.name not in {*listed, MANIFEST})
    if foreign:
        raise InputError(
            f"{target} holds {', '.join(foreign[:3])}, which export did not write and would delete. "
            "Move it away, or give another folder."
        )


def _replace(target: Path, partial: Path) -> None:
    """Put the finished folder in place; an older bundle goes only once the new one is there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
