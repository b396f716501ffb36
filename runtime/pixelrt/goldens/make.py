"""Makes a bundle's golden outputs with ONNX Runtime on the CPU, from the bundle alone.

The graphs run as they are written, nothing fused and nothing folded. So 4-bit weights meet fp32 activations (fused,
ONNX Runtime would round those to 8 bits); and weights stay mapped files of which one tensor at a time is widened:
memory does not grow with the number of layers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.bundle import Bundle
from pixelrt.goldens.file import FILE, Goldens
from pixelrt.goldens.take import Making
from pixelrt.segmenter import open_bundle

# A family's walk: `questions(segmenter)`, `walk(...)`, `answers(...)`, MAX_NEW_TOKENS.
WALKS = {"pixellm": "pixelrt.goldens.pixellm", "psalm": "pixelrt.goldens.psalm"}


def make_goldens(
    folder: Path, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> dict[str, Any]:
    """Write goldens.npz into a bundle's folder; gives what its manifest says of it.

    The bundle is trusted, for it was just written. Raises InputError: no onnxruntime, or numbers that are not finite.
    """
    from pixelrt.engine_ort import VERSION, OrtBackend

    bundle = Bundle.read(folder, verify=False)
    progress("golden outputs made", 0, 1)
    segmenter = open_bundle(bundle, OrtBackend(bundle, plain=True))
    family = walk_of(bundle)
    picture, take = drawn_picture(), Making()
    questions = family.questions(segmenter)
    family.walk(segmenter, picture, questions, family.MAX_NEW_TOKENS, take)
    goldens = Goldens(
        bundle.manifest["family"],
        picture,
        questions,
        family.MAX_NEW_TOKENS,
        take.choices,
        take.given,
        take.seen,
    )
    goldens.write(folder / FILE, {"onnxruntime": VERSION})
    progress("golden outputs made", 1, 1)
    return {"file": FILE, "questions": list(questions)}


def walk_of(bundle: Bundle) -> Any:
    return importlib.import_module(WALKS[bundle.manifest["family"]])


def drawn_picture() -> NDArray[np.uint8]:
    """(240, 320, 3): a grey slope with a red circle and a blue square on it, and grain. Nobody's photograph."""
    y, x = np.mgrid[0:240, 0:320]
    grain = (x * 7 + y * 13 + x * y % 31) % 24
    picture = np.repeat((90 + x // 4 + y // 6 + grain)[..., None], 3, axis=2)
    picture[(x - 85) ** 2 + (y - 120) ** 2 < 45**2] = (205, 40, 45)
    picture[80:171, 180:271] = (40, 70, 200)
    return picture.astype(np.uint8)
