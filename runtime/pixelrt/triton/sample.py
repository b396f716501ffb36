"""The question that a probe asks, and what the bundle answers to it here."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from pixelrt import query_json
from pixelrt.errors import InputError
from pixelrt.goldens.file import read_goldens
from pixelrt.segmenter import Segmenter


def sample_of(segmenter: Segmenter) -> tuple[bytes, dict[str, Any]]:
    """PNG and question of the bundle's goldens, the first that gives masks, with the answer's text, labels, boxes and
    areas. Raises InputError: no goldens, or none that gives masks."""
    goldens = read_goldens(segmenter.bundle)
    file = io.BytesIO()
    Image.fromarray(goldens.picture).save(file, "PNG")
    frame = segmenter.encode(file.getvalue())
    for query in goldens.questions.values():
        answer = segmenter.segment(frame, query).to_json()
        if answer["masks"]:
            masks = [{key: mask[key] for key in ("label", "box", "area")} for mask in answer["masks"]]
            expect = {"text": answer["text"], "size": list(goldens.picture.shape[:2]), "masks": masks}
            return file.getvalue(), {"query": query_json.to_json(query), "expect": expect}
    raise InputError(
        f"{segmenter.bundle.path} draws no mask for its golden questions, so that a probe could not tell whether it "
        "works. Export a trained checkpoint."
    )
