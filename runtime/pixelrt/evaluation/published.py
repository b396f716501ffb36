"""What the papers say of their released models. Theirs, not measured here.

Only figures that were read in a public source are listed; a paper's other figures are left out until somebody has its
table at hand. Add a line with the place it was read at.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    model: str
    variant: str  # as Benchmark.variant
    split: str
    measure: str
    value: float  # 0..1
    source: str


_PIXELLM = "the paper of PixelLM (CVPR 2024, arXiv 2312.02228), as quoted on public pages"

FIGURES = (
    Published("PixelLM-7B", "refcoco", "val", "cIoU", 0.730, _PIXELLM),
    Published("PixelLM-7B", "refcoco", "testA", "cIoU", 0.765, _PIXELLM),
    Published("PixelLM-7B", "refcoco+", "testB", "cIoU", 0.583, _PIXELLM),
)


def published(variant: str, split: str) -> list[Published]:
    return [figure for figure in FIGURES if (figure.variant, figure.split) == (variant, split)]
