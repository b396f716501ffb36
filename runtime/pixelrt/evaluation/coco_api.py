"""pycocotools: masks of polygons as COCO draws them, and average precision. Imported when first needed (extra eval)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelrt import rle
from pixelrt.errors import MissingExtra
from pixelrt.evaluation.measures import Bits

# As COCOeval.stats lists them: all three sizes, IoU 0.50 to 0.95, at most 100 objects a picture.
PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def _missing(error: ModuleNotFoundError) -> Exception:
    return MissingExtra("pycocotools, which reads COCO's polygons and computes AP,", "eval")


def mask_of_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Bits:
    """The union of polygons x, y, x, y, ...; size: H, W. Raises ValueError."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    for polygon in polygons:
        numbers = np.asarray(polygon, np.float64)
        if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise ValueError("a polygon needs three points or more")
        if np.abs(numbers).max() > 1e6:
            raise ValueError("a polygon leads far out of the picture")
    drawn = mask.decode(mask.merge(mask.frPyObjects([list(p) for p in polygons], *size)))
    return np.asarray(drawn, np.bool_)


def mask_of_rle(encoded: Any, size: tuple[int, int]) -> Bits:
    """Compressed or not, of this size. Raises ValueError."""
    counts = encoded["counts"]
    height, width = (int(side) for side in encoded["size"])
    if (height, width) != size:
        raise ValueError(f"its RLE is {height} x {width}, the picture {size[0]} x {size[1]}")
    if isinstance(counts, list):
        runs = np.asarray(counts, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError("its runs do not add up to the picture")
        return np.asarray(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T)
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return rle.decode({"size": [height, width], "counts": text})


def average_precision(
    truth: dict[str, Any], images: Sequence[int], found: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """truth: an instances file; images: ids of those asked about; found: COCO's results format. Name -> value in 0..1,
    or nan where no object of that size occurs."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    if not found:
        return dict.fromkeys(PRECISIONS, 0.0)  # COCO.loadRes refuses an empty list
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        judge = COCOeval(annotated, annotated.loadRes([dict(one) for one in found]), "segm")
        judge.params.imgIds = list(images)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {
        name: float(v) if v >= 0 else float("nan")
        for name, v in zip(PRECISIONS, judge.stats[:6], strict=True)
    }
