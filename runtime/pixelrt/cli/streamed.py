"""What `pixelrt segment --stream` prints while an answer comes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pixelrt.cli import say
from pixelrt.cli.answer_folder import GrowingAnswer
from pixelrt.cli.segment import mask_line
from pixelrt.masks import Mask
from pixelrt.segmenter import Result


def told(stream: Iterator[str | Mask | Result], folder: GrowingAnswer, as_json: bool) -> Result:
    """Print each piece, and write each mask to `folder` before its line; gives the last piece, the result.

    as_json: a line each, `{"text": piece}` or `{"mask": its entry in answer.json}`; else words share a line until
    a mask comes between them.
    """
    said, within = "", False  # within: a line is begun
    for piece in stream:
        if isinstance(piece, str):
            said += piece
            if as_json:
                say(json.dumps({"text": piece}, ensure_ascii=False))
            else:
                say(piece if within else piece.lstrip(), end=False)
            within = True
        elif isinstance(piece, Mask):
            entry = folder.add(piece, said)
            if as_json:
                say(json.dumps({"mask": entry}, ensure_ascii=False))
                continue
            if within:
                say()
            say(mask_line(len(folder.masks), piece, folder.folder / entry["file"]))
            within = False
        else:
            if within and not as_json:
                say()
            return piece
    raise RuntimeError("the stream ended without a result")
