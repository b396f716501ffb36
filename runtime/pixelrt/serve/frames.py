"""Encoded pictures, kept by the SHA-256 of their file until others need the room."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pixelrt.segmenter import Frame

if TYPE_CHECKING:  # prometheus_client, which only `pixelrt serve` needs
    from pixelrt.serve.metrics import Metrics


class Frames:
    """At most `limit_bytes` of frames; the one unused for longest goes first. For one thread."""

    def __init__(self, limit_bytes: int, metrics: Metrics | None = None) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._metrics = metrics
        self._kept: OrderedDict[str, tuple[Frame, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, digest: str) -> Frame | None:
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest][0]

    def drop(self, digest: str) -> None:
        if digest in self._kept:
            self.bytes -= self._kept.pop(digest)[1]
        self._tell()

    def keep(self, digest: str, frame: Frame) -> None:
        """Also for a frame that is kept already: a question may have made it larger."""
        self.drop(digest)
        size = frame.nbytes
        if size <= self.limit_bytes:
            while self.bytes + size > self.limit_bytes:
                self.drop(next(iter(self._kept)))
            self._kept[digest] = frame, size
            self.bytes += size
        self._tell()

    def _tell(self) -> None:
        if self._metrics is not None:
            self._metrics.frames.set(len(self._kept))
            self._metrics.frame_bytes.set(self.bytes)
