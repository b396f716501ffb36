"""fuse_scales and combine_scales on a GPU; arguments and results as in reference.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelrt_kernels.device import Device, blocks, int32
from pixelrt_kernels.fuse_scales.reference import check_combine, check_fuse
from pixelrt_kernels.upsample_mask.probability import Floats

THREADS, COMBINE_THREADS = 256, 128


def fuse_launch(half: bool, positions: int, channels: int) -> tuple[str, int, int]:
    """Kernel, blocks, threads. Its arguments are previous, features, dense, then N, P, C, then out; a TensorRT plugin
    is launched just so. Raises ValueError for 2^31 values or more."""
    if positions * channels >= 1 << 31:
        raise ValueError(f"need features of fewer than 2^31 values, got {(positions, channels)}")
    suffix, each = variant(np.float16 if half else np.float32, channels)
    return f"pixelrt_fuse_scales_{suffix}", blocks(positions * channels // each, THREADS), THREADS


@dataclass(frozen=True)
class FuseLaunch:
    """Buffers of one size of work; `__call__` may run any number of times, `result` copies to the host."""

    device: Device
    previous: Any  # (N, P) float32
    features: Any  # (P, C)
    dense: Any  # (C,)
    shape: tuple[int, int, int]  # N, P, C
    stored: type[np.float16] | type[np.float32]
    out: Any

    @classmethod
    def of(cls, device: Device, previous: Floats, features: Floats, dense: Floats) -> FuseLaunch:
        check_fuse(previous, features, dense)
        fuse_launch(features.dtype == np.float16, *features.shape)  # it checks
        stored: type[np.float16] | type[np.float32] = (
            np.float16 if features.dtype == np.float16 else np.float32
        )
        return cls(
            device,
            device.upload(np.ascontiguousarray(previous, np.float32)),
            device.upload(np.ascontiguousarray(features, stored)),
            device.upload(np.ascontiguousarray(dense, stored)),
            (len(previous), *features.shape),
            stored,
            device.allocate(len(previous) * features.size * np.dtype(stored).itemsize),
        )

    def __call__(self) -> None:
        kernel, count, threads = fuse_launch(self.stored is np.float16, *self.shape[1:])
        self.device.launch(
            kernel,
            (count, 1, 1),
            (threads, 1, 1),
            0,
            self.previous,
            self.features,
            self.dense,
            *int32(*self.shape),
            self.out,
        )

    def result(self) -> Floats:
        return self.device.download(self.out, self.shape, self.stored)


def fuse_scales(device: Device, previous: Floats, features: Floats, dense: Floats) -> Floats:
    launch = FuseLaunch.of(device, previous, features, dense)
    if features.size:
        launch()
    return launch.result()


def combine_scales(device: Device, masks: Sequence[Floats], weights: Floats) -> Floats:
    check_combine(masks, weights)
    count, height, width = masks[-1].shape
    out = device.allocate(4 * count * height * width)
    for i, (scale, weight) in enumerate(zip(masks, weights, strict=True) if count else ()):
        device.launch(
            "pixelrt_combine_scales",
            (blocks(width, COMBINE_THREADS), height, count),
            (COMBINE_THREADS, 1, 1),
            0,
            device.upload(np.ascontiguousarray(scale, np.float32)),
            *int32(*scale.shape[1:], height, width),
            np.float32(weight),
            *int32(i == 0),
            out,
        )
    return device.download(out, (count, height, width), np.float32)


def variant(stored: type[np.float16] | type[np.float32], width: int) -> tuple[str, int]:
    """Ending of a kernel's name, and how many values a thread takes: 16 bytes where `width` divides into them."""
    each = 16 // np.dtype(stored).itemsize
    each = 1 if width % each else each
    return f"{'f16' if stored is np.float16 else 'f32'}x{each}", each
