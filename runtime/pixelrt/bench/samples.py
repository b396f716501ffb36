"""One answer, taken apart into stages, and many of them in columns."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.stopwatch import Call, TimedBackend
from pixelrt.masks import Mask
from pixelrt.queries import Query
from pixelrt.segmenter import Segmenter

# Parts of an answer in ms; together they are its `total`.
STAGES = ("image", "encode", "prefill", "decode", "pixel_decoder", "upsample", "copies", "other")
# Beside them. decode_token: ms a token after the first. answer: a question on a frame that is encoded already.
# first_mask: from the picture's file to the first mask of a stream.
FIGURES = ("decode_token", "answer", "first_mask", "total")
COLUMNS = (*STAGES, *FIGURES)
# What families call their stages -> what they are called here.
NAMES = {"image": "image", "encode": "encode", "pixel_decoder": "pixel_decoder", "upsample": "upsample",
         "masks": "upsample", "copies": "copies"}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """words: the query for a reader."""

    image: Path
    query: str | Query
    words: str

    @property
    def sha256(self) -> str:
        """Of the picture's file and the query: the same in two measurements where they can be compared."""
        digest = hashlib.sha256(self.image.read_bytes())
        digest.update(json.dumps(_plain(self.query), ensure_ascii=True).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """start, stop: seconds of `time.perf_counter`. spent: of COLUMNS, ms; what did not occur is left out."""

    start: float
    stop: float
    spent: dict[str, float]
    forwards: int
    tokens: int
    masks: int
    answer_sha256: str


def take_sample(
    segmenter: Segmenter, backend: TimedBackend, question: Question, max_new_tokens: int = 512
) -> Sample:
    """Encode the picture, answer the question, and look at every mask: some results make them only then.

    Then, outside of what is counted, ask again for the first mask alone, as a stream gives it, about a frame of its
    own: of this one the language model has read the picture by then.
    """
    backend.take()
    start = time.perf_counter()
    frame = segmenter.encode(question.image)
    asked = time.perf_counter()
    answer = segmenter.segment(frame, question.query, max_new_tokens=max_new_tokens)
    answered = time.perf_counter()
    count = sum(mask.mask.ndim > 0 for mask in answer.masks)
    stop = time.perf_counter()
    timing = {**frame.timing, **answer.timing}
    if count:
        key = "masks" if "masks" in timing else "upsample"
        timing[key] = timing.get(key, 0.0) + 1e3 * (stop - answered)
    calls = [call for call in backend.take() if call.graph == "language"]
    tokens = len(getattr(answer, "token_ids", ()))
    spent = stages_of(timing, calls, tokens, 1e3 * (stop - start))
    spent["answer"] = 1e3 * (stop - asked)
    if count:
        spent["first_mask"] = first_mask(segmenter, question, max_new_tokens)
        backend.take()
    document = {key: value for key, value in answer.to_json().items() if key not in ("timing_ms", "decoding")}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return Sample(start, stop, spent, len(calls), tokens, count, digest)


def first_mask(segmenter: Segmenter, question: Question, max_new_tokens: int) -> float:
    """ms from the picture's file to the first mask of a stream; what would follow it is not asked for."""
    start = time.perf_counter()
    pieces = segmenter.stream(segmenter.encode(question.image), question.query, max_new_tokens=max_new_tokens)
    for piece in pieces:
        if isinstance(piece, Mask):
            np.asarray(piece.mask)  # some make it only then
            break
    spent = 1e3 * (time.perf_counter() - start)
    getattr(pieces, "close", lambda: None)()
    return spent


def stages_of(
    timing: Mapping[str, float], calls: Sequence[Call], tokens: int, total: float
) -> dict[str, float]:
    """STAGES, decode_token and total, in ms. calls: of the language graph.

    The language stage of a family that writes words is cut where the second forward begins: whatever is needed to
    choose the first token is `prefill`, also on a backend whose calls return before they are done. An engine that
    takes fewer rows than a prompt has reads full pieces and the rest, all of them `prefill`. A family that writes no
    words reads its prompt in one or several forwards, all of them `prefill` too.
    """
    spent = {NAMES[name]: ms for name, ms in timing.items() if name in NAMES}
    if "language" in timing:
        language = timing["language"]
        read = next((i for i, call in enumerate(calls) if not call.full), len(calls)) + 1
        if tokens and len(calls) > read:
            spent["prefill"] = min(language, 1e3 * (calls[read].start - calls[0].start))
            spent["decode"] = language - spent["prefill"]
        else:
            spent["prefill"] = language
    spent["other"] = max(0.0, total - sum(spent.values()))
    if "decode" in spent and tokens > 1:
        spent["decode_token"] = spent["decode"] / (tokens - 1)
    spent["total"] = total
    return spent


def table_of(
    values: NDArray[np.float64], rounds: NDArray[np.int64], questions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R, Q): one column as rounds x questions. Questions without this stage in every round are left out, NaN there."""
    table = np.full((int(rounds.max()) + 1, int(questions.max()) + 1), np.nan)
    table[rounds, questions] = values
    return table


def _plain(value: Any) -> Any:
    """A query as JSON; what is long or has no order by its hash or sorted."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if is_dataclass(value):
        return [
            type(value).__name__,
            {field.name: _plain(getattr(value, field.name)) for field in fields(value)},
        ]
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
