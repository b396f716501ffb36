"""A segmenter that needs no model: what is red, and what is blue, is a mask. And pictures for it, as messages."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pixelrt.errors import InputError
from pixelrt.image import open_image
from pixelrt.masks import Answer, Mask
from pixelrt_kernels.upsample_mask.reference import box_of

HEIGHT, WIDTH = 33, 47
FRAME = "camera_optical"


class Coloured:
    """Labels are "red NOUN" and "blue NOUN", where NOUN is the prompt's last word."""

    backend = "coloured"

    def __init__(self, path: Path = Path("coloured"), delay_s: float = 0.0) -> None:
        self.bundle: Any = SimpleNamespace(path=path, sha256="cd" * 32, manifest={"family": "coloured"})
        self.delay_s = delay_s
        self.asked: list[str] = []

    def check(
        self, prompt: Any, image: Any = None, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> list[int]:
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError("the prompt is empty. Ask something.")
        return []

    def encode(self, image: Any) -> Any:
        return SimpleNamespace(image=open_image(image), timing={"image": 1.0, "encode": 2.0})

    def segment(
        self, frame: Any, prompt: Any, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> Answer:
        frame = frame if isinstance(frame, SimpleNamespace) else self.encode(frame)
        self.asked.append(prompt)
        time.sleep(self.delay_s)
        noun = str(prompt).split()[-1].strip(".")
        rgb = frame.image.astype(int)
        found = {
            f"red {noun}": rgb[..., 0] - rgb[..., 2] > 100,
            f"blue {noun}": rgb[..., 2] - rgb[..., 0] > 100,
        }
        masks = [
            Mask(bits, round(0.9 - 0.1 * i, 3), label, None, box_of(bits), np.zeros((4, 4), np.float32))
            for i, (label, bits) in enumerate(found.items())
            if bits.any()
        ]
        return Answer("words", [1, 2], masks, {"language": 3.0})


def picture(number: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """A red and a blue rectangle that move with `number`, on grey noise; red alone in every fifth."""
    rng = np.random.default_rng(number)
    rgb = np.repeat(rng.integers(90, 110, (*shape, 1), dtype=np.uint8), 3, axis=2)
    rgb[3 + number % 11 : 12 + number % 11, 5:14] = (250, 20, 10)
    if number % 5:
        rgb[10:20, 20 + number % 7 : 33 + number % 7] = (10, 30, 240)
    return rgb


def message(rgb: NDArray[np.uint8], stamp: Any = 0) -> Any:
    """What the node's worker reads of a sensor_msgs/Image. stamp: whatever tells headers apart."""
    return SimpleNamespace(
        header=stamp,
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding="rgb8",
        is_bigendian=0,
        step=3 * rgb.shape[1],
        data=rgb.tobytes(),
    )
