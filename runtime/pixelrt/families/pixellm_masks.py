"""PixelLM's pixel decoder: hidden states of targets and one picture's features become masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pixelrt.engine import Array, Engine
from pixelrt.masks import Mask
from pixelrt.segmenter import Frame, stage
from pixelrt.upsample import upsample_mask


def drawn(pixel_decoder: Engine, frame: Frame, hidden: Array, timing: dict[str, float]) -> list[Mask]:
    """Masks without label and span. hidden (N, scales, tokens a scale, H). timing: the stages are added to it."""
    count = len(hidden)
    # As many targets at once as the engine takes.
    most = pixel_decoder.memory.most("seg_hidden", 0) or count
    parts = [hidden[i : i + most] for i in range(0, count, most)]
    with stage(timing, "pixel_decoder"):
        planes = [pixel_decoder({"seg_hidden": part, **frame.features})["low_res_masks"] for part in parts]
    with stage(timing, "upsample"):
        height, width = frame.image.shape[:2]
        found = [upsample_mask(part, max(frame.content), frame.content, (height, width)) for part in planes]
        masks, scores, boxes = (_stacked(each) for each in zip(*found, strict=True))
        low_res = _stacked([np.asarray(part) for part in planes])
    return [Mask(masks[i], float(scores[i]), "", None, _box(boxes[i]), low_res[i]) for i in range(count)]


def labelled(masks: Sequence[Mask], places: Sequence[tuple[str, tuple[int, int] | None]]) -> list[Mask]:
    """The masks with labels and spans."""
    return [replace(mask, label=label, span=span) for mask, (label, span) in zip(masks, places, strict=True)]


def _stacked(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _box(row: Array) -> tuple[int, int, int, int] | None:
    """None for an empty mask, whose box is all zeros."""
    x0, y0, x1, y1 = (int(value) for value in row)
    return (x0, y0, x1, y1) if x1 > x0 else None
