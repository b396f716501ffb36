"""upsample_mask and label_map on a GPU; arguments and results as in host.py. Sizes are checked here alone.

low_res may lie on the GPU already, see `pixelrt_kernels.device.contiguous`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt_kernels.device import Device, blocks, contiguous, int32
from pixelrt_kernels.upsample_mask.host import Bytes
from pixelrt_kernels.upsample_mask.labels import Owners, check_scores
from pixelrt_kernels.upsample_mask.probability import Floats
from pixelrt_kernels.upsample_mask.reference import check

# As in gpu.cuh.
MASK_COLUMNS, MASK_WARPS, MASK_ROWS = 64, 4, 32  # of a warp's tile; warps of a block
LABEL_COLUMNS, LABEL_ROWS = 128, 16  # of a block's tile
TILE_FOUND = 32  # bytes
GRID_MAX = 65535  # blocks along y and z
LABELS_MAX = 2048  # three counts of each in shared memory, beside 17 KB

Size = tuple[int, int]


@dataclass(frozen=True)
class MaskLaunch:
    """Buffers of one size of work; `__call__` may run any number of times, `result` copies to the host."""

    device: Device
    low_res: Any  # (N, h, w) float32
    count: int
    sizes: tuple[int, ...]  # h, w, S, h', w', H, W
    words: Any  # (N, H, ceil(W / 32)) uint32
    found: Any
    scores: Any
    boxes: Any

    @classmethod
    def of(cls, device: Device, low_res: Any, square: int, content: Size, original: Size) -> MaskLaunch:
        check(low_res, square, content, original)
        sizes, count = (*low_res.shape[1:], square, *content, *original), len(low_res)
        if count > GRID_MAX:
            raise ValueError(f"need at most {GRID_MAX} masks in one launch, got {count}")
        tiles = _tiles(original)
        return cls(
            device,
            device.upload(contiguous(low_res, np.float32)),
            count,
            sizes,
            device.allocate(4 * count * original[0] * blocks(original[1], 32)),
            device.allocate(TILE_FOUND * count * tiles[0] * tiles[1]),
            device.allocate(4 * count),
            device.allocate(16 * count),
        )

    def __call__(self) -> None:
        across, down = _tiles(self.sizes[5:])
        grid = (across // MASK_WARPS, down, self.count)
        self.device.launch(
            "pixelrt_upsample_mask",
            grid,
            (32, MASK_WARPS, 1),
            0,
            self.low_res,
            *int32(*self.sizes),
            self.words,
            self.found,
        )
        self.device.launch(
            "pixelrt_mask_scores",
            (self.count, 1, 1),
            (32, 1, 1),
            0,
            self.found,
            *int32(across * down),
            self.scores,
            self.boxes,
        )

    def result(self) -> tuple[Bytes, Floats, NDArray[np.int32]]:
        height, width = self.sizes[5:]
        pitch = blocks(width, 32)
        bits = self.device.download(self.words, (self.count, height, 4 * pitch), np.uint8)
        return (
            np.ascontiguousarray(bits[:, :, : blocks(width, 8)]),
            self.device.download(self.scores, (self.count,), np.float32),
            self.device.download(self.boxes, (self.count, 4), np.int32),
        )


def upsample_bits(
    device: Device, low_res: Any, square: int, content: Size, original: Size
) -> tuple[Bytes, Floats, NDArray[np.int32]]:
    launch = MaskLaunch.of(device, low_res, square, content, original)
    if launch.count:
        launch()
    return launch.result()


@dataclass(frozen=True)
class LabelLaunch:
    """As MaskLaunch, but that each call adds to the counts: they hold after the first."""

    device: Device
    low_res: Any  # (N, h, w) float32
    weights: Any  # (N,) float32
    count: int
    sizes: tuple[int, ...]
    owner: Any  # (H, W) int16
    counts: Any  # (3, N) int32

    @classmethod
    def of(
        cls, device: Device, low_res: Any, scores: Floats, square: int, content: Size, original: Size
    ) -> LabelLaunch:
        check(low_res, square, content, original)
        check_scores(low_res, scores)
        count = len(low_res)
        if count > LABELS_MAX:
            raise ValueError(f"need at most {LABELS_MAX} masks on a GPU, got {count}")
        return cls(
            device,
            device.upload(contiguous(low_res, np.float32)),
            device.upload(np.ascontiguousarray(scores, np.float32)),
            count,
            (*low_res.shape[1:], square, *content, *original),
            device.allocate(2 * original[0] * original[1]),
            device.upload(np.zeros((3, count), np.int32)),
        )

    def __call__(self) -> None:
        height, width = self.sizes[5:]
        self.device.launch(
            "pixelrt_label_map",
            (blocks(width, LABEL_COLUMNS), blocks(height, LABEL_ROWS), 1),
            (32, LABEL_COLUMNS // 32, 1),
            12 * self.count,
            self.low_res,
            self.weights,
            *int32(self.count, *self.sizes),
            self.owner,
            self.counts,
        )

    def result(self) -> Owners:
        height, width = self.sizes[5:]
        counts = self.device.download(self.counts, (3, self.count), np.int32).astype(np.int64)
        return Owners(self.device.download(self.owner, (height, width), np.int16), *counts)


def label_map(
    device: Device, low_res: Any, scores: Floats, square: int, content: Size, original: Size
) -> Owners:
    launch = LabelLaunch.of(device, low_res, scores, square, content, original)
    launch()
    return launch.result()


def _tiles(original: tuple[int, ...]) -> Size:
    """Across, a whole number of blocks, and down."""
    height, width = original
    return MASK_WARPS * blocks(width, MASK_COLUMNS * MASK_WARPS), blocks(height, MASK_ROWS)
