"""What waits together is answered together, where nobody wants the answer piece by piece."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.queries import Query
from pixelrt.segmenter import Frame, Result, Segmenter

if TYPE_CHECKING:
    from pixelrt.serve.worker import Question

Asked = tuple["Question", Frame]


def answers_of(
    segmenter: Segmenter, asked: Sequence[Asked]
) -> Iterator[tuple[Question, str | Mask | Result | Exception]]:
    """Each question's pieces: words and masks as they come, then the result, or the error in its place.

    Those with the same options that want the whole answer are answered in one batch, which stands where its first
    question does.
    """
    groups: dict[Any, list[Asked]] = {}
    for question, frame in asked:
        kind = question if question.stream else (question.max_new_tokens, question.seg_runs)
        groups.setdefault(kind, []).append((question, frame))
    for group in groups.values():
        wanted = [(question, frame) for question, frame in group if not question.abandoned]
        first = group[0][0]
        frames, queries = [frame for _, frame in wanted], [question.query for question, _ in wanted]
        results = together(segmenter, frames, queries, first.max_new_tokens, first.seg_runs)
        if results is not None:
            yield from zip((question for question, _ in wanted), results, strict=True)
            continue
        for question, frame in wanted:
            yield from _alone(segmenter, frame, question)


def together(
    segmenter: Segmenter,
    frames: Sequence[Frame],
    queries: Sequence[str | Query],
    max_new_tokens: int,
    seg_runs: str = "complete",
) -> Sequence[Result] | None:
    """None where they are to be answered one by one, so that each has its own answer or error."""
    segment_batch = getattr(segmenter, "segment_batch", None)
    if segment_batch is None or len(queries) < 2:
        return None
    try:
        results: Sequence[Result] = segment_batch(
            frames, queries, max_new_tokens=max_new_tokens, seg_runs=seg_runs
        )
        return results
    except InputError:
        return None
    except Exception as error:  # for whoever runs the server: what fails again alone is told then, too
        traceback.print_exception(error)
        return None


def _alone(
    segmenter: Segmenter, frame: Frame, question: Question
) -> Iterator[tuple[Question, str | Mask | Result | Exception]]:
    try:
        with closing(_pieces(segmenter, frame, question)) as pieces:
            for piece in pieces:
                if question.abandoned:
                    break
                yield question, piece
    except Exception as error:
        yield question, error


def _pieces(segmenter: Segmenter, frame: Frame, question: Question) -> Generator[Any, None, None]:
    options: dict[str, Any] = {"max_new_tokens": question.max_new_tokens, "seg_runs": question.seg_runs}
    stream = getattr(segmenter, "stream", None)
    if stream is not None:  # also for a whole answer: it ends where its client leaves
        yield from stream(frame, question.query, **options)
        return
    result = segmenter.segment(frame, question.query, **options)
    if question.stream:
        yield result.text
        yield from result.masks
    yield result
