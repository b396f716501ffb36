"""The functions of `pixelrt_kernels.upsample_mask` for logits that lie on a GPU.

Where the GPU code of the kernels is not built the logits come to the host; one warning says so.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels import upsample_mask as host
from pixelrt_kernels.library import BUILD_COMMAND, DEVICE, find
from pixelrt_kernels.upsample_mask import Owners, launch

from pixelrt.device_array import DeviceArray
from pixelrt.errors import PixelrtWarning

if TYPE_CHECKING:
    from pixelrt.cuda import CudaDevice

Size = tuple[int, int]
Floats = NDArray[np.float32]
Found = tuple[NDArray[Any], Floats, NDArray[np.int32]]


class MaskOperators:
    def __init__(self, device: CudaDevice) -> None:
        self.device = device

    def upsample_bits(self, low_res: DeviceArray, square: int, content: Size, original: Size) -> Found:
        if not _built():
            return host.upsample_bits(np.asarray(low_res), square, content, original)
        with self.device as device:
            return launch.upsample_bits(device.kernels(), low_res, square, content, original)

    def upsample_mask(self, low_res: DeviceArray, square: int, content: Size, original: Size) -> Found:
        """Bits cross to the host, an eighth of the bytes, and become bools there."""
        bits, scores, boxes = self.upsample_bits(low_res, square, content, original)
        return np.unpackbits(bits, axis=2, count=original[1]).view(np.bool_), scores, boxes

    def label_map(
        self, low_res: DeviceArray, scores: Floats, square: int, content: Size, original: Size
    ) -> Owners:
        if not _built() or len(low_res) > launch.LABELS_MAX:
            return host.label_map(np.asarray(low_res), scores, square, content, original)
        with self.device as device:
            return launch.label_map(device.kernels(), low_res, scores, square, content, original)


@functools.cache
def _built() -> bool:
    """Looked for once: hashing the sources takes as long as a mask."""
    if find(DEVICE) is not None:
        return True
    warnings.warn(
        f"The GPU code of the kernels is not built: masks are enlarged on the host. Run: {BUILD_COMMAND}",
        PixelrtWarning,
        stacklevel=4,
    )
    return False
