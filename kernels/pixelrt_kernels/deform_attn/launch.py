"""deform_attn on a GPU; arguments and results as in reference.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.deform_attn.reference import Floats, check, level_table
from pixelrt_kernels.device import Device, blocks, int32
from pixelrt_kernels.fuse_scales.launch import variant

THREADS = 128  # of a block
PLACED = 24  # bytes of one sample in shared memory
SHARED_MAX = 32768  # bytes; more samples than fit are taken in turns


@dataclass(frozen=True)
class Plan:
    """How the kernel is launched: (blocks, M, B) blocks. Its arguments are value, levels, locations, weights, then
    `arguments`, then out; a TensorRT plugin is launched just so."""

    kernel: str
    blocks: int
    threads: int
    shared: int  # bytes
    arguments: tuple[int, ...]


def deform_launch(
    half: bool, positions: int, queries: int, heads: int, width: int, levels: int, points: int
) -> Plan:
    """half: values and weights are fp16. Raises ValueError for heads that are too wide."""
    suffix, each = variant(np.float16 if half else np.float32, width)
    threads = width // each
    if threads > THREADS:
        raise ValueError(f"need heads of at most {THREADS} threads' width, got {width} channels")
    pairs = THREADS // threads
    chunk = min(levels * points, SHARED_MAX // (PLACED * pairs))
    return Plan(
        f"pixelrt_deform_attn_{suffix}",
        blocks(queries, pairs),
        THREADS,
        PLACED * pairs * chunk,
        (positions, queries, width, levels, points, threads, chunk),
    )


@dataclass(frozen=True)
class DeformLaunch:
    """Buffers of one size of work; `__call__` may run any number of times, `result` copies to the host."""

    device: Device
    value: Any  # (B, N, M, d)
    levels: Any  # (L, 3) int32
    locations: Any  # (B, Q, M, L, P, 2) float32
    weights: Any  # (B, Q, M, L, P)
    sizes: tuple[int, int, int, int, int, int, int]  # B, N, Q, M, d, L, P
    stored: type[np.float16] | type[np.float32]
    out: Any

    @classmethod
    def of(
        cls,
        device: Device,
        value: Floats,
        shapes: Sequence[tuple[int, int]],
        locations: NDArray[np.float32],
        weights: Floats,
    ) -> DeformLaunch:
        check(value, shapes, locations, weights)
        batch, positions, heads, width = value.shape
        queries, levels, points = locations.shape[1], *locations.shape[3:5]
        stored: type[np.float16] | type[np.float32] = np.float16 if value.dtype == np.float16 else np.float32
        deform_launch(stored is np.float16, positions, queries, heads, width, levels, points)  # it checks
        return cls(
            device,
            device.upload(np.ascontiguousarray(value, stored)),
            device.upload(level_table(shapes)),
            device.upload(np.ascontiguousarray(locations, np.float32)),
            device.upload(np.ascontiguousarray(weights, stored)),
            (batch, positions, queries, heads, width, levels, points),
            stored,
            device.allocate(batch * queries * heads * width * np.dtype(stored).itemsize),
        )

    def __call__(self) -> None:
        batch, positions, queries, heads, width, levels, points = self.sizes
        plan = deform_launch(self.stored is np.float16, positions, queries, heads, width, levels, points)
        self.device.launch(
            plan.kernel,
            (plan.blocks, heads, batch),
            (plan.threads, 1, 1),
            plan.shared,
            self.value,
            self.levels,
            self.locations,
            self.weights,
            *int32(*plan.arguments),
            self.out,
        )

    def result(self) -> Floats:
        batch, _, queries, heads, width, _, _ = self.sizes
        return self.device.download(self.out, (batch, queries, heads * width), self.stored)


def deform_attn(
    device: Device,
    value: Floats,
    shapes: Sequence[tuple[int, int]],
    locations: NDArray[np.float32],
    weights: Floats,
) -> Floats:
    launch = DeformLaunch.of(device, value, shapes, locations, weights)
    if locations.size:
        launch()
    return launch.result()
