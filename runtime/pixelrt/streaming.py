"""An answer as it comes: words when they are whole, a mask as soon as its run of codebook tokens is.

The pixel decoder draws a mask on a thread of its own while the language model goes on; graphs run outside of Python's
lock. The answer is `segment`'s: the same tokens, text and places. `segment` draws all targets in one call of the pixel
decoder; here each has its own. No target of a call depends on another, but a backend may pick its kernels by their
number: logits may then differ in rounding, and a mask in a pixel whose logit is as good as zero. (ONNX Runtime on
x86-64, fp32: no bit differs.)

Nothing runs ahead of who takes the pieces: a token is read when the next piece is asked for. Who stops taking them
(`break`, `close`) ends all of it, after the one mask that is being drawn.

With `seg_runs="original"` one malformed run drops every mask of an answer, also those before it. So none is given
before the last token, and they are drawn as `segment` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pixelrt.generate import Codebook, Generation
from pixelrt.masks import Answer, Mask
from pixelrt.segmenter import Frame, stage

if TYPE_CHECKING:
    from pixelrt.families.pixellm import PixelLM

THREAD = "pixelrt-masks"  # its name
BLANK = "\u2581"  # how a token begins that begins a word (SentencePiece)


def streamed(
    model: PixelLM, frame: Frame, steps: Generator[Generation, None, None], complete: bool
) -> Iterator[str | Mask | Answer]:
    """steps: the answer growing by one token at a time; complete: every run in it will be whole."""
    timing: dict[str, float] = {}  # stages overlap: their sum is more than the time that passed
    generation, told = Generation(), ""  # told: text that was given
    text, spans, read = "", dict[int, tuple[int, int]](), 0  # settled text; read: tokens it is of
    masks: list[Mask] = []
    drawing: deque[tuple[Future[list[Mask]], str, tuple[int, int] | None]] = deque()  # label, span
    begun, run = 0, model.codebook.run  # targets that were handed to the painter
    painter = ThreadPoolExecutor(1, THREAD)

    def begins_word(token: int) -> bool:
        return (model.prompt.tokenizer.id_to_token(token) or "").startswith(BLANK)

    def drawn(wait: bool) -> Iterator[Mask]:
        while drawing and (wait or drawing[0][0].done()):
            future, label, span = drawing.popleft()
            masks.append(replace(future.result()[0], label=label, span=span))
            yield masks[-1]

    try:
        for generation in _timed(steps, timing):
            end = settled(generation.token_ids, model.codebook, begins_word)
            if end > read:
                read = end
                text, spans = model.render(generation.token_ids[:end])
            if complete and begun < len(generation.seg_hidden) // run:
                places = model.places(generation, text, spans)
                for i in range(begun, len(generation.seg_hidden) // run):
                    target = np.stack(generation.seg_hidden[run * i : run * (i + 1)])[None]
                    drawing.append((painter.submit(model.draw, frame, target, timing), *places[i]))
                begun = len(generation.seg_hidden) // run
            if len(text) > len(told):
                piece, told = text[len(told) :], text
                yield piece
            yield from drawn(wait=False)
        text, spans = model.render(generation.token_ids)
        if len(text) > len(told):
            yield text[len(told) :]
        yield from drawn(wait=True)
        if not complete:
            masks = model.masks(frame, generation, text, spans, timing)
            yield from masks
    finally:
        painter.shutdown(cancel_futures=True)
        steps.close()  # its context serves the next question
    yield model.answer(frame, generation, timing, masks)


def settled(token_ids: Sequence[int], codebook: Codebook, begins_word: Callable[[int], bool]) -> int:
    """How many tokens have a text that no later token changes: whole words, and whole runs of codebook tokens.

    A letter may come in several tokens and a word in many, so a word is whole where the next one begins. Text without
    blanks is settled by the run behind it.
    """
    at = len(token_ids)
    while at and token_ids[at - 1] not in codebook.ids:
        at -= 1
        if begins_word(token_ids[at]):
            return at
    if at < len(token_ids) or not at:
        return at
    first = next((i for i in range(at, 0, -1) if token_ids[i - 1] not in codebook.ids), 0)
    return at - (at - first) % codebook.run


def _timed(steps: Iterator[Generation], timing: dict[str, float]) -> Iterator[Generation]:
    while True:
        with stage(timing, "language"):
            step = next(steps, None)
        if step is None:
            return
        yield step
