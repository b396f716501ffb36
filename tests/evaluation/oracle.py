"""Miniature datasets, and a model that knows the truth about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pixelrt.queries import Classes, Refer, Track

from tests.evaluation import miniature as mini

PICTURES = [mini.drawn(seed) for seed in range(3)]
QUESTIONS = [[("all three", (1, 2, 3)), ("the star", (2,))], [("two", (1, 3))], [("one", (3,))]]


def film(seed: int, count: int = 5) -> list[mini.Picture]:
    """Things that move to the right by three pixels a frame."""
    first = mini.drawn(seed)
    return [
        replace(first, image=np.roll(first.image, 3 * t, 1), labels=np.roll(first.labels, 3 * t, 1))
        for t in range(count)
    ]


FILMS = {"bear": film(0), "camel": film(1)}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "refcoco": lambda root: mini.write_refcoco(root, PICTURES),
    "muse": lambda root: mini.write_muse(root, PICTURES, QUESTIONS),
    "coco-panoptic": lambda root: mini.write_coco(root, PICTURES, stuff=mini.NAMES[2:]),
    "coco-instance": lambda root: mini.write_coco(root, PICTURES),
    "davis": lambda root: mini.write_davis(root, FILMS),
}


class Oracle:
    """Answers with the truth; moved by `shift` pixels. Knows pictures by size-independent means: their order."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.bundle = SimpleNamespace(sha256="0" * 64)
        self.codebook = SimpleNamespace(ids=(7, 8))
        self.prompt = SimpleNamespace(
            template="A <im_start><image><im_end>\n{question} B:",
            tokenizer=SimpleNamespace(id_to_token=lambda token: f"[SEG{token - 7}]"),
        )
        self.asked: list[Any] = []

    def encode(self, image: np.ndarray) -> Any:
        every = [*PICTURES, *FILMS["bear"], *FILMS["camel"]]
        distances = [np.abs(image.astype(int) - p.image).mean() for p in every]  # JPEG is nearly the same
        picture = every[int(np.argmin(distances))]
        return SimpleNamespace(image=image, content=picture.size, picture=picture)

    def mask(self, picture: mini.Picture, label: int) -> Any:
        bits = np.roll(picture.mask(label), self.shift, 1)
        logits = np.where(bits, 9.0, -9.0).astype(np.float32)
        box = (0, 0, 1, 1) if bits.any() else None
        from pixelrt import rle

        return SimpleNamespace(
            mask=bits, score=0.9, box=box, low_res_logits=logits, rle=lambda: rle.encode(bits)
        )

    def segment(self, frame: Any, query: Any, max_new_tokens: int = 1) -> Any:
        self.asked.append(query)
        picture = frame.picture
        if isinstance(query, Track):
            marked = [int(np.median(query.first.picture.labels[m])) for m in query.regions.masks]
            labels = np.zeros(picture.size, np.int32)
            for k, label in enumerate(marked, start=1):
                labels[np.roll(picture.mask(label), self.shift, 1)] = k
            return SimpleNamespace(label_map=labels, masks=[self.mask(picture, label) for label in marked])
        if isinstance(query, Classes):
            from pixelrt.results import Instances

            found = [
                (k, self.mask(picture, label))
                for label, name in picture.names.items()
                for k in [query.names.index(name)]
            ]
            return Instances(picture.size, [m for _, m in found], [k for k, _ in found], [])
        text = " ".join(query.sentences) if isinstance(query, Refer) else query
        wanted = [k for k, name in picture.names.items() if name in text]
        for line in (line for each in QUESTIONS for line in each):
            wanted = list(line[1]) if line[0] in text and not wanted else wanted
        return SimpleNamespace(masks=[self.mask(picture, label) for label in wanted[::-1]])
