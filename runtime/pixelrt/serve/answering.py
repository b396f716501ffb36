"""Questions that somebody else gathered (Triton's batcher, Ray Serve's) to answers: each picture is encoded once."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixelrt.errors import InputError
from pixelrt.queries import Query
from pixelrt.segmenter import Frame, Result, Segmenter
from pixelrt.serve.frames import Frames
from pixelrt.serve.limits import checked
from pixelrt.serve.settings import Settings
from pixelrt.serve.together import together


@dataclass(frozen=True, eq=False)
class Asked:
    picture: bytes  # of a file
    entry: Any  # the query as JSON
    max_new_tokens: int | None = None
    fresh: bool = False  # encode the picture even if it was before: a probe wants to see the encoder run


@dataclass(frozen=True, eq=False)
class Told:
    """See `pixelrt.serve.document.Told`."""

    frame: Frame
    result: Result
    query: str | Query
    reused: bool

    @property
    def timing_ms(self) -> dict[str, float]:
        return {**({} if self.reused else self.frame.timing), **self.result.timing}


class Answering:
    """A segmenter and the pictures it encoded last. For one thread."""

    def __init__(self, segmenter: Segmenter, settings: Settings) -> None:
        self.segmenter, self.settings = segmenter, settings
        self.frames = Frames(settings.frames_bytes)
        self.encoder_runs = 0

    def __call__(self, questions: Sequence[Asked]) -> list[Told | Exception]:
        """One for each question: its answer, or why there is none. InputError is the asker's fault."""
        found: dict[Asked, Told | Exception] = {}
        groups: dict[str, list[tuple[Asked, str | Query, int]]] = {}
        for asked in questions:
            most = self.settings.new_tokens
            tokens = min(asked.max_new_tokens or most, most)
            try:
                query, _ = checked(self.segmenter, asked.picture, asked.entry, self.settings, tokens)
            except Exception as error:
                found[asked] = _heard(error)
            else:
                digest = f"fresh {id(asked)}" if asked.fresh else hashlib.sha256(asked.picture).hexdigest()
                groups.setdefault(digest, []).append((asked, query, tokens))
        for digest, group in groups.items():
            found |= self._answered(digest, group)
        return [found[asked] for asked in questions]

    def _answered(
        self, digest: str, group: Sequence[tuple[Asked, str | Query, int]]
    ) -> dict[Asked, Told | Exception]:
        """Questions about one picture: those with the same limit together, else in turn."""
        found: dict[Asked, Told | Exception] = {}
        frame = self.frames.get(digest)
        reused, sound = frame is not None, True
        if frame is None:
            try:
                frame = self.segmenter.encode(group[0][0].picture)
            except Exception as error:
                return dict.fromkeys((asked for asked, _, _ in group), _heard(error))
            self.encoder_runs += 1
        results = self._together(frame, group)
        for asked, query, tokens in group:
            try:
                result = results.get(asked)
                if result is None:
                    result = self.segmenter.segment(frame, query, max_new_tokens=tokens)
                found[asked] = Told(frame, result, query, reused)
                reused = True
            except Exception as error:
                found[asked] = _heard(error)
                sound = sound and isinstance(error, InputError)
        if sound and not group[0][0].fresh:
            self.frames.keep(digest, frame)
        else:  # what the model had read of it may be half of something
            self.frames.drop(digest)
        return found

    def _together(self, frame: Frame, group: Sequence[tuple[Asked, str | Query, int]]) -> dict[Asked, Result]:
        """Answers to the questions that have as many tokens as the first; none where each is to be asked alone."""
        alike = [(asked, query) for asked, query, tokens in group if tokens == group[0][2]]
        results = together(self.segmenter, [frame] * len(alike), [query for _, query in alike], group[0][2])
        return {} if results is None else dict(zip((asked for asked, _ in alike), results, strict=True))


def _heard(error: Exception) -> Exception:
    """For whoever runs the server; the client gets a sentence."""
    if not isinstance(error, InputError):
        traceback.print_exception(error)
    return error


def failure(error: Exception) -> str:
    """What a client is told."""
    if isinstance(error, InputError):
        return str(error)
    return f"The model failed ({type(error).__name__}). The server's log has the details."
