"""The doubles put in the place of pycuda and tensorrt, and engines for them in a copy of a bundle."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pixelrt.bundle import Bundle
from pixelrt.engines import EngineRecord, Engines, Value, fingerprint_of, folder_of, write_engines
from pixelrt.verdict import verdict_on, write_verdict

from tests.doubles.cuda import LibCuda, pycuda_double
from tests.doubles.machine import Machine
from tests.doubles.tensorrt import plan, tensorrt_double

ARCHITECTURE, VERSION, DEVICE = "sm_87", "10.16.1", "a test double"
OVER_THE_DRIVER = ("pixelrt.cuda", "pixelrt.engine_trt")  # imported anew over each double


@dataclass
class Doubles:
    machine: Machine
    libcuda: LibCuda
    trt: Any


@contextmanager
def installed(emulate: Any = None, version: str = VERSION) -> Iterator[Doubles]:
    """Over the doubles, a GPU of sm_87. Sizes are not rounded up, so that one byte too many is found."""
    machine = Machine()
    doubles = Doubles(machine, LibCuda(machine), tensorrt_double(machine, version))
    package: Any = ModuleType("pycuda")
    package.driver = pycuda_double(machine, (8, 7), emulate)
    with pytest.MonkeyPatch.context() as patch:
        modules = {"pycuda": package, "pycuda.driver": package.driver, "tensorrt": doubles.trt}
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            patch.setitem(sys.modules, name, module)
        for name in OVER_THE_DRIVER:
            patch.delitem(sys.modules, name, raising=False)
        patch.setattr("pixelrt.cuda_graph.libcuda", lambda: doubles.libcuda)
        patch.setattr("pixelrt.device_array._rounded", lambda size: max(1, size))
        yield doubles
        for name in OVER_THE_DRIVER:
            sys.modules.pop(name, None)


@dataclass(frozen=True)
class Sizes:
    """The most of everything, as docs/bundle.md's letters. past: tokens before a prefill with a growing cache."""

    cache: int = 512
    prefill: int = 384
    decode: int = 8
    targets: int = 4
    conditions: int = 40
    past: int | None = None
    batch: int = 1


def with_engines(
    source: Path,
    folder: Path,
    sizes: Sizes | None = None,
    language: str = "language",
    activations: str = "float32",
    verified: bool = True,
    spoiled: str = "",
    factor: float = 1.125,
    **changes: Any,
) -> Path:
    """A copy of a bundle with engines for the double. verified: as if they had been. spoiled: GRAPH.OUTPUT whose
    second half comes out `factor` times as large. changes: of each record, to spoil it."""
    shutil.copytree(source, folder, copy_function=os.link)
    bundle, sizes = Bundle.read(folder, verify=False), sizes or Sizes()
    at = folder_of(folder, "orin-nano", "tensorrt")
    at.mkdir(parents=True)
    records = {}
    for graph in ("encoder", "language", "pixel_decoder"):
        name = language if graph == "language" else graph
        file = bundle.graph(name, activations=activations)
        in_place = file.cache == "in_place"
        profiles = _profiles(file.inputs, graph, sizes, in_place)
        wrong = spoiled.partition(".")[2] if spoiled.startswith(f"{graph}.") else ""
        content = plan(file.path, list(profiles.values()), sizes.cache if in_place else None, wrong, factor)
        (at / f"{graph}.engine").write_bytes(content)
        fingerprint = fingerprint_of(bundle, name, activations)
        values = [
            {t.name: Value(file.activations if t.dtype == "activations" else t.dtype, t.shape) for t in side}
            for side in (file.inputs, file.outputs)
        ]
        record = {
            "graph": graph,
            "source": name,
            "file": f"{graph}.engine",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "fingerprint": fingerprint,
            "stands_for": fingerprint,
            "precision": "fp32",
            "activations": activations,
            "flavour": "tensorrt",
            "version": VERSION,
            "cuda": "",
            "architecture": ARCHITECTURE,
            "kernels": None,
            "profiles": profiles,
            "cache_length": sizes.cache if in_place else None,
            "inputs": values[0],
            "outputs": values[1],
            "layers": 1,
            "seconds": 0.0,
        }
        records[graph] = EngineRecord(**{**record, **changes})
    engines = Engines(at, "orin-nano", records)
    write_engines(engines)
    if verified:
        verdict = verdict_on(engines, bundle, True, "said by the test", device=DEVICE)
        write_verdict(at, verdict)
    return folder


def _profiles(inputs: Any, graph: str, sizes: Sizes, in_place: bool) -> dict[str, Any]:
    """Profile -> input -> (least, best, most), of the inputs whose shape varies."""

    def ranges(tokens: int) -> dict[str, Any]:
        most = {
            "B": sizes.batch if graph == "encoder" else 1,
            "S": tokens,
            "T": sizes.cache,
            "P": sizes.cache if sizes.past is None or tokens == sizes.decode else sizes.past,
            "M": sizes.cache,
            "R": min(tokens, 64),
            "N": sizes.targets,
            "K": sizes.conditions,
            "Q": min(tokens, 100),
        }
        least = {**dict.fromkeys(most, 1), "P": 0, "M": sizes.cache}
        found = {}
        for tensor in inputs:
            varies = [d for d in tensor.shape if isinstance(d, str) and not (in_place and d == "M")]
            if varies:
                low, high = ([of.get(d, d) for d in tensor.shape] for of in (least, most))
                found[tensor.name] = (low, high, high)
        return found

    if graph == "language":
        # The wide one first: which profile is taken must not hang on their order.
        return {"prefill": ranges(sizes.prefill), "decode": ranges(sizes.decode)}
    return {"image": ranges(1)}
