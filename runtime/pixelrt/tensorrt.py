"""TensorRT 10.3 to 11.4 and TensorRT-RTX as one library: which is installed, and all in which they differ.

What the code calls exists in all of them (names compared in the bindings of 10.3.0, 11.4.0 and RTX 1.7.1):
`parse(model, path)`, `supports_model_v2`, strongly typed networks, `set_shape`, `build_serialized_network`, timing
caches, progress monitors. Precision flags, calibrators and `supports_model`, which 11 removed, are not used.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from pixelrt.engines import RTX
from pixelrt.errors import InputError, MissingExtra

TENSORRT = "tensorrt"
FLAVOURS = (TENSORRT, RTX)


@dataclass(frozen=True)
class Difference:
    """modules: import names, the first that is there is taken. since: the first version whose parser and kernels are
    known to do (TensorRT 10.3 is JetPack 6's). in_place_since: the first that writes a cache in place. timing: has a
    timing cache that is of use."""

    modules: tuple[str, ...]
    since: tuple[int, int]
    in_place_since: tuple[int, int]
    timing: bool


DIFFERENCES = {
    TENSORRT: Difference(("tensorrt",), (10, 3), (10, 15), True),
    # Builds without a GPU, for the architectures that are named; TensorRT builds for the GPU it runs on.
    RTX: Difference(("tensorrt_rtx", "tensorrt_rtx_bindings"), (1, 7), (1, 7), False),
}
# Wheels say in their names for which CUDA they are; the packages of JetPack and of the tar file do not.
WHEELS = {TENSORRT: "tensorrt_cu{}_bindings", RTX: "tensorrt_rtx_cu{}_bindings"}
CUDA_VERSIONS = ("12", "13")


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    flavour: str
    module: ModuleType
    version: str
    cuda: str  # "12", "13", or "" where it does not say

    @property
    def number(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def in_place(self) -> bool:
        """Whether it runs `language`, with a cache written in place, or its twin `language_compat`."""
        return self.number >= DIFFERENCES[self.flavour].in_place_since

    @property
    def timing(self) -> bool:
        """Whether it remembers in a timing cache what it measured; TensorRT-RTX measures nothing when it builds."""
        return DIFFERENCES[self.flavour].timing

    @property
    def title(self) -> str:
        name = "TensorRT-RTX" if self.flavour == RTX else "TensorRT"
        return f"{name} {self.version}" + (f" (CUDA {self.cuda})" if self.cuda else "")

    def architectures(self) -> tuple[str, ...] | None:
        """`sm_XX` that it builds for without such a GPU; None: it builds for the GPU it runs on."""
        if self.flavour != RTX:
            return None
        names = (name for name in vars(self.module.ComputeCapability) if name.startswith("SM"))
        return tuple(f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:])))

    def aim(self, config: Any, architecture: str) -> None:
        """Have the engine built for this architecture, where that can be chosen."""
        if self.flavour == RTX:
            config.num_compute_capabilities = 1
            name = architecture.replace("sm_", "SM")
            config.set_compute_capability(getattr(self.module.ComputeCapability, name), 0)


def installed(flavour: str) -> bool:
    return any(importlib.util.find_spec(name) is not None for name in DIFFERENCES[flavour].modules)


def open_library(backend: str) -> Library:
    """Import it. backend: `tensorrt`, `tensorrt-rtx`, or `auto`: the first of them that is installed.

    Raises MissingExtra where it is not installed, InputError where it cannot be loaded or is too old.
    """
    choice = FLAVOURS if backend == "auto" else (backend,)
    for flavour in choice:
        for name in DIFFERENCES[flavour].modules:
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name and not error.name.startswith(name):
                    raise
            except ImportError as error:
                raise InputError(
                    f"{name} is installed but cannot be loaded ({error}). Install the libraries it names."
                ) from None
            else:
                if hasattr(module, "Builder"):  # else some file or folder of that name on Python's path
                    return _checked(Library(flavour, module, module.__version__, _cuda_of(flavour)))
    if backend == "auto":
        raise MissingExtra("TensorRT (nor TensorRT-RTX)", RTX)
    raise MissingExtra("TensorRT-RTX" if backend == RTX else "TensorRT", backend)


def _checked(library: Library) -> Library:
    since = DIFFERENCES[library.flavour].since
    if library.number < since:
        wanted = ".".join(map(str, since))
        raise InputError(
            f"{library.title} is too old: {wanted} or newer is wanted. "
            "On a Jetson, JetPack 6.1 or newer brings it; elsewhere run: "
            f"pip install -U 'pixelrt[{library.flavour}]'"
        )
    return library


def _cuda_of(flavour: str) -> str:
    for number in CUDA_VERSIONS:
        try:
            version(WHEELS[flavour].format(number))
        except PackageNotFoundError:
            continue
        return number
    return ""
