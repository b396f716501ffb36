"""Contexts that have read the beginning of a prompt, kept for the next one that begins so.

A prompt is head, picture, question. All pictures have the same head, all questions about one the same head and picture.
What a context has read of them stays in its cache, and a further question reads only its own words.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pixelrt.engine import Engine
from pixelrt.language import Context
from pixelrt.segmenter import Frame

STEP = 64  # caches grow by so many tokens at once, as growing copies them


@dataclass
class Kept:
    """A context, and whose beginning it holds: `head`, then the tokens of `frame` up to `end`."""

    context: Context
    head: tuple[int, ...] = ()
    frame: weakref.ref[Frame] | None = None
    end: int = 0
    taken: bool = False


class Prefixes:
    """May be shared by threads: a context serves one prompt at a time, and who finds none free gets a new one.

    keep: contexts that stay, each with the cache of one prompt and its answer. One suffices where the questions about
    a frame follow one another; with 0 every prompt is read whole. skip_padding: leave out the picture's tokens that
    nothing may look at.
    """

    def __init__(self, engine: Engine, keep: int = 1, skip_padding: bool = True) -> None:
        self.engine, self.keep, self.skip_padding = engine, keep, skip_padding
        self._kept: list[Kept] = []  # the one used last at the end
        self._lock = threading.Lock()

    @contextmanager
    def context(self, frame: Frame, head: Sequence[int], capacity: int) -> Iterator[Context]:
        """One with room for `capacity` tokens, that holds what it knows of head and picture, and nothing behind it."""
        one = self._take(frame, tuple(head))
        try:
            known = min(self._known(one, frame, tuple(head)), one.context.length)
            one.head, one.frame, one.end = (
                tuple(head),
                weakref.ref(frame),
                len(head) + tokens_of(frame, one.context),
            )
            one.context.rewind(known, -(-capacity // STEP) * STEP if one.context.grows else capacity)
            yield one.context
        finally:
            one.taken = False

    def _take(self, frame: Frame, head: tuple[int, ...]) -> Kept:
        with self._lock:
            free = [one for one in self._kept if not one.taken]
            one = max(free, key=lambda one: self._known(one, frame, head), default=None)
            known = self._known(one, frame, head) if one else 0
            if one is None or (known <= len(head) and len(self._kept) < self.keep):
                one = Kept(Context(self.engine, 0, self.skip_padding))
            self._kept = [other for other in self._kept if other is not one]
            self._kept = [*self._kept, one][-self.keep :] if self.keep else []
            one.taken = True
            return one

    @staticmethod
    def _known(one: Kept, frame: Frame, head: tuple[int, ...]) -> int:
        """How many tokens of this beginning it holds."""
        if one.head != head:
            return 0
        return one.end if one.frame is not None and one.frame() is frame else len(head)


class Head:
    """The beginning of all prompts, where each frame has a context of its own: read once, then copied.

    For one thread at a time. Where a cache lies on a GPU, or the engine does not go on behind a short one, contexts
    begin empty.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._context: Context | None = None

    def begin(self, context: Context, length: int, read: Callable[[Context], object], behind: int) -> bool:
        """Whether the empty `context` now holds the head's `length` tokens. read: does so to an empty context. behind:
        tokens that are read next."""
        if not context.on_host or not context.can_append(behind, length):
            return False
        if self._context is None:
            begun = Context(self.engine, length)
            read(begun)
            self._context = begun
        context.begin_as(self._context)
        return True


def tokens_of(frame: Frame, context: Context) -> int:
    """How many of a picture's tokens a context reads."""
    return int(frame.token_valid.sum()) if context.skips else len(frame.tokens)
