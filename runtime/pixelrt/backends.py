"""Which backend runs a bundle: TensorRT, then ONNX Runtime on the GPU, then on the CPU.

A backend that is named is used or refused. `auto` takes the first that can run the bundle here.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from pixelrt.bundle import Bundle
from pixelrt.engine import Backend
from pixelrt.engines import FOLDER, LIST
from pixelrt.errors import InputError, MissingExtra, PixelrtWarning
from pixelrt.tensorrt import FLAVOURS

ORT_CPU, ORT_CUDA = "onnxruntime", "onnxruntime-cuda"
BACKENDS = ("auto", *FLAVOURS, ORT_CUDA, ORT_CPU)
# What NVIDIA's drivers make: of a graphics card, of a Jetson, of Windows' Linux.
DEVICE_FILES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg")


def check_name(name: str) -> None:
    """Raises InputError for a name that is none of BACKENDS."""
    if name not in BACKENDS:
        raise InputError(f"No backend {name!r}. Choose one of: {', '.join(BACKENDS)}.")


def open_backend(bundle: Bundle, name: str = "auto", unverified: bool = False) -> Backend:
    """name: of BACKENDS. unverified: take TensorRT engines that were not verified yet, to do so.

    Raises InputError where that one cannot run the bundle here.
    """
    check_name(name)
    if name in FLAVOURS:
        return _tensorrt(bundle, name, unverified)
    if name in (ORT_CPU, ORT_CUDA):
        return _onnxruntime(bundle, cuda=name == ORT_CUDA)
    if gpu_is_there():
        if any((bundle.path / FOLDER).glob(f"*/{LIST}")):
            for flavour in _flavours(bundle):
                try:
                    return _tensorrt(bundle, flavour, unverified)
                except InputError as error:  # engines of another GPU or version, not verified, no TensorRT
                    warnings.warn(str(error), PixelrtWarning, stacklevel=3)
        try:
            return _onnxruntime(bundle, cuda=True)
        except InputError:  # the onnxruntime that is installed has no CUDA
            pass
    return _onnxruntime(bundle, cuda=False)


def gpu_is_there() -> bool:
    """Whether this machine shows signs of an NVIDIA GPU, be it one that our libraries cannot open."""
    return any(Path(file).exists() for file in DEVICE_FILES) or shutil.which("nvidia-smi") is not None


def _flavours(bundle: Bundle) -> list[str]:
    """Those that the bundle has engines of; one that is not installed comes last, for its sentence."""
    rtx = [file.parent.name.endswith(f".{FLAVOURS[1]}") for file in (bundle.path / FOLDER).glob(f"*/{LIST}")]
    return [flavour for flavour, there in zip(FLAVOURS, (not all(rtx), any(rtx)), strict=True) if there]


def _tensorrt(bundle: Bundle, flavour: str, unverified: bool) -> Backend:
    try:
        from pixelrt.engine_trt import TrtBackend
    except ModuleNotFoundError as error:
        raise MissingExtra.from_import(error) or error from None
    except ImportError as error:
        raise InputError(f"The NVIDIA driver cannot be used ({error}). Run: nvidia-smi") from None
    return TrtBackend(bundle, flavour, unverified=unverified)


def _onnxruntime(bundle: Bundle, cuda: bool) -> Backend:
    from pixelrt.engine_ort import OrtBackend

    return OrtBackend(bundle, cuda=cuda)
