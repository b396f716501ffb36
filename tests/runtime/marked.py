"""Answers written out in tests: where their marks stand, and the labels of these."""

from __future__ import annotations

import re

from pixelrt.masks import label_spans


def labelled_spans(text: str, marker: str = "[SEG]") -> list[tuple[str, tuple[int, int]]]:
    """(label, span) of each marker in `text`."""
    spans = [match.span() for match in re.finditer(re.escape(marker), text)]
    return list(zip(label_spans(text, spans), spans, strict=True))
