"""out[n] = bilinear(crop(bilinear(low_res[n], S x S), h' x w'), H x W), any rows of it     (numpy, the specification)

Letters and roundings as in reference.py. There one mask is made after the other; where several are compared pixel
by pixel, or summed, all must be there at once: so they are made a band of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pixelrt_kernels.upsample_mask.probability import Floats
from pixelrt_kernels.upsample_mask.reference import Taps, check, mix, taps


@dataclass(frozen=True)
class Chain:
    """The two resizing steps; each holds the taps of rows and of columns."""

    to_square: tuple[Taps, Taps]  # of the content's h' rows and w' columns: that is the crop
    to_original: tuple[Taps, Taps]

    @classmethod
    def of(cls, low_res: Floats, square: int, content: tuple[int, int], original: tuple[int, int]) -> Chain:
        """low_res (N, h, w). Raises ValueError as `upsample_mask` does."""
        check(low_res, square, content, original)
        rows, columns = (taps(low_res.shape[axis + 1], square) for axis in (0, 1))
        square_taps = (_first(rows, content[0]), _first(columns, content[1]))
        return cls(square_taps, (taps(content[0], original[0]), taps(content[1], original[1])))

    @property
    def original(self) -> tuple[int, int]:
        return len(self.to_original[0].t), len(self.to_original[1].t)

    def bands(self, pixels: int) -> Iterator[slice]:
        """Rows of the output in bands of about `pixels` pixels, one row at least."""
        height, width = self.original
        step = max(1, pixels // width)
        return (slice(top, min(top + step, height)) for top in range(0, height, step))

    def content_rows(self, plane: Floats, part: slice) -> Floats:
        """Rows `part` of the content, (rows, w'), from a low-resolution plane (h, w)."""
        return _resized(plane, self.to_square, part)

    def rows(self, plane: Floats, part: slice) -> Floats:
        """Rows `part` of the output, (rows, W), from a low-resolution plane (h, w)."""
        near, source = _shifted(self.to_original[0], part)
        content = mix(self.content_rows(plane, source), self.to_original[1], axis=1)
        return mix(content, near, axis=0)

    def enlarged(self, content: Floats, first: int, part: slice) -> Floats:
        """Rows `part` of the output from rows of the content that begin with row `first`."""
        near, source = _shifted(self.to_original[0], part)
        rows = content[source.start - first : source.stop - first]
        return mix(mix(rows, self.to_original[1], axis=1), near, axis=0)

    def source_rows(self, part: slice) -> slice:
        """Rows of the content that rows `part` of the output are made of."""
        return _shifted(self.to_original[0], part)[1]


def _resized(plane: Floats, along: tuple[Taps, Taps], part: slice) -> Floats:
    rows, source = _shifted(along[0], part)
    return mix(mix(plane[source], along[1], axis=1), rows, axis=0)


def _shifted(along: Taps, part: slice) -> tuple[Taps, slice]:
    """The taps of outputs `part`, counted from the first source row they read, and the rows they read."""
    low, high = along.low[part], along.high[part]
    first, last = int(low[0]), int(high[-1]) + 1
    return Taps(low - first, high - first, along.keep[part], along.t[part]), slice(first, last)


def _first(along: Taps, count: int) -> Taps:
    return Taps(along.low[:count], along.high[:count], along.keep[:count], along.t[:count])
