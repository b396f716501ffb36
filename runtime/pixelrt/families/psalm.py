"""PSALM: one pass of the language model gives mask queries and conditions, one decoder masks and scores."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from pixelrt_kernels.upsample_mask.reference import box_of

from pixelrt.batch import Opened, each, encoded, frames_of, opened, paired, read_all
from pixelrt.bundle import Bundle
from pixelrt.engine import Array, Backend, Joined, Value
from pixelrt.errors import InputError
from pixelrt.families import psalm_masks as post
from pixelrt.families.psalm_batch import decoded
from pixelrt.families.psalm_prompt import REGION, PsalmPrompt, Tail, tail_of
from pixelrt.families.psalm_regions import region_masks, region_vectors
from pixelrt.families.psalm_results import Result, labels_of, result_of
from pixelrt.families.psalm_video import distinct, fused, tracked
from pixelrt.image import ImageSpec, open_image
from pixelrt.language import Context, positions
from pixelrt.manifest import MANIFEST, check
from pixelrt.masks import Mask
from pixelrt.prefix import Head
from pixelrt.queries import Classes, Query, Refer, Regions, Track, refuse
from pixelrt.results import Tracked
from pixelrt.segmenter import Frame, frame_of, stage
from pixelrt.tokens import TokenTable

ANSWERS = {
    "Classes": '["person", "sky"]',
    "Refer or its text": "the red mug",
    "Regions": "points=[(120, 80)]",
    "Track": "picture, Regions",
}
IMAGE = -200  # in ids: the picture stands here
# Rows in one pass of the language model: attention takes memory of rows x positions in every head.
ROWS_MAX = 2048
# This family's part of a manifest; see pixelrt.manifest.
KINDS_OF_CONDITION = ("class", "sentence", "region")
FORM = {
    "prompt": {
        "templates": dict.fromkeys(KINDS_OF_CONDITION, str),
        "condition": dict.fromkeys(KINDS_OF_CONDITION, str),
        "separator": str,
        "class_suffix": str,
        "sentence_suffix": str,
        "sentence_item": str,
        "background": str,
    },
    "conditions": dict.fromkeys(KINDS_OF_CONDITION, int),
    "tokens": {"image_tokens": int, "mask_tokens": {"first": int, "count": int}},
    "language": {"max_positions": int},
}


def open_family(bundle: Bundle, backend: Backend) -> Psalm:
    return Psalm(bundle, backend)


class Psalm:
    """A loaded PSALM bundle; see `pixelrt.segmenter.Segmenter`.

    prefixes: what all prompts begin with is read once; None reads it for each frame.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend.name
        manifest = bundle.manifest
        check(manifest, FORM, str(bundle.path / MANIFEST))
        tokens, table = manifest["tokens"], manifest["embeddings"]
        self.image_spec = ImageSpec.from_dict(manifest["image"])
        self.image_tokens: int = tokens["image_tokens"]
        self.condition_kinds: dict[str, int] = manifest["conditions"]
        self.prompt = PsalmPrompt(bundle.file(tokens["tokenizer"]), manifest["prompt"], tokens)
        self.table = TokenTable(bundle.file(table["file"]), table["dtype"], table["shape"])
        self._encoder = backend.open("encoder")
        self._language = backend.open("language")
        self._pixel_decoder = backend.open("pixel_decoder")
        self.max_positions = positions(self._language, manifest["language"]["max_positions"])
        self._reading = threading.Lock()  # a frame's context serves one prompt at a time
        self.prefixes: Head | None = Head(self._language)

    def encode(self, image: Any) -> Frame:
        """All that depends on the image alone; reuse the frame for every question about it."""
        return next(self._frames([opened(image)]))

    def encode_batch(self, images: Sequence[Any]) -> list[Frame]:
        """`encode` of each, several in one run of the encoder."""
        return list(self._frames(each("Image", images, opened)))

    def _frames(self, pictures: Sequence[Opened]) -> Iterator[Frame]:
        for picture, prepared, features in encoded(self._encoder, self.image_spec, ("pixels",), pictures):
            tokens = features.pop("image_tokens")[0]
            yield Frame(
                picture.rgb,
                prepared.content,
                tokens,
                # Padding is attended to like everything else: the model was trained so.
                np.ones(len(tokens), np.bool_),
                features,
                self.bundle.sha256,
                picture.timing,
                Context(self._language, 0),
            )

    def check(
        self,
        prompt: Query | str,
        image: Any = None,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> list[int]:
        """See `pixelrt.segmenter.Segmenter`. An open file is left unread, so it tells nothing of places."""
        query = _query(prompt)
        tail = tail_of(self.prompt, query.regions if isinstance(query, Track) else query)
        self._room(len(tail))
        if isinstance(query, Regions) and image is not None and not hasattr(image, "read"):
            picture = image.image if isinstance(image, Frame) else open_image(image)
            region_masks(query, (picture.shape[0], picture.shape[1]))
        return [*self.prompt.head, IMAGE, *(int(token) for token in tail.ids)]

    def segment(
        self,
        frame: Frame | Any,
        prompt: Query | str,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> Result:
        """Answer a query; a text is `Refer(text)`. The two options are for families that write words."""
        query = _query(prompt)
        if not isinstance(
            frame, Frame
        ):  # of a frame all is checked on the way; encoding a picture takes long
            self.check(query, frame)
        frame = self._frame(frame)
        tail, vectors = self._phrased(frame, query)
        return self._result(frame, query, *self._decode(frame, tail, vectors))

    def segment_batch(
        self, images: Any, prompts: Any, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> list[Result]:
        """Several questions at once; see `pixelrt.segmenter.Segmenter`."""
        pictures, which, asked = paired(images, prompts)
        queries = each("Prompt", asked, _query)
        read = read_all(self, pictures)
        about = [one.rgb if isinstance(one, Opened) else one for one in read]
        each("Prompt", list(zip(queries, (about[i] for i in which), strict=True)), lambda q: self.check(*q))
        frames = frames_of(read, self._frames)
        rows = [(frames[i], query) for i, query in zip(which, queries, strict=True)]
        found = decoded(self, [(frame, *self._phrased(frame, query)) for frame, query in rows])
        return [self._result(frame, query, *one) for (frame, query), one in zip(rows, found, strict=True)]

    def _phrased(self, frame: Frame, query: Query) -> tuple[Tail, Array | None]:
        """How a query is written, and the vectors of its regions (R, H)."""
        marked = query.regions if isinstance(query, Track) else query
        source = self._frame(query.first) if isinstance(query, Track) else frame
        vectors = self.region_vectors(source, marked) if isinstance(marked, Regions) else None
        return tail_of(self.prompt, marked), vectors

    def _result(
        self, frame: Frame, query: Query, logits: Value, scores: Array, timing: dict[str, float]
    ) -> Result:
        """Of mask logits (Q, h, w) and scores (Q, K)."""
        with stage(timing, "masks"):
            result = result_of(query, logits, scores, self._sizes(frame))
        return replace(result, timing=timing)

    def stream(
        self,
        frame: Frame | Any,
        prompt: Query | str,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> Iterator[Mask | Result]:
        """The masks, then the result. One pass draws them all, so they come together."""
        query = _query(prompt)
        self.check(query, frame)
        return self._streamed(self._frame(frame), query)

    def chat(self, frame: Frame | Any) -> NoReturn:
        """PSALM writes no words that a further question could be about."""
        raise InputError(
            "PSALM answers without words, so there is no conversation with it. Ask each query on its own: "
            "seg.segment(frame, query)."
        )

    def _streamed(self, frame: Frame, query: Query) -> Iterator[Mask | Result]:
        result = self.segment(frame, query)
        yield from result.masks
        yield result

    def track(self, frames: Iterable[Any], regions: Regions, memory: bool = True) -> Iterator[Tracked]:
        """Follow the objects marked by `regions` on the first of `frames`; one result a frame.

        Masks that mark objects are the first result themselves. memory: look for the objects as they were in
        the frame before where that is safe, not as they were marked; see psalm_video.py.
        """
        vectors: Array | None = None
        for image in frames:
            frame = self._frame(image)
            if vectors is None:
                vectors = self.region_vectors(frame, regions)
                yield self._first(frame, regions)
                continue
            result = self._track(frame, vectors, labels_of(regions))
            yield result
            if memory:
                vectors = self._remembered(frame, result, vectors)

    def region_vectors(self, frame: Frame, regions: Regions) -> Array:
        """(R, H): what the prompt takes for regions of this frame."""
        masks = region_masks(regions, _size(frame))
        return region_vectors(masks, np.asarray(frame.tokens), frame.content, self.image_spec.size)

    @property
    def _rows_max(self) -> int:
        return min(ROWS_MAX, self._language.memory.most("inputs_embeds", 1) or ROWS_MAX)

    def _frame(self, image: Frame | Any) -> Frame:
        return frame_of(self, image)

    def _sizes(self, frame: Frame) -> post.Sizes:
        return post.Sizes(self.image_spec.size, frame.content, _size(frame))

    def decoded(self, frame: Frame, query: Classes) -> tuple[Value, Array, post.Sizes]:
        """Mask logits (Q, h, w) and class scores (Q, C + 1), for more than one rule of psalm_masks."""
        logits, scores, _ = self._decode(frame, self._tail(query))
        return logits, scores, self._sizes(frame)

    def _tail(self, query: Classes) -> Tail:
        return self.prompt.classes([*query.names, self.prompt.background])

    def _decode(
        self, frame: Frame, tail: Tail, vectors: Array | None = None
    ) -> tuple[Value, Array, dict[str, float]]:
        """Mask logits (Q, h, w), scores (Q, K) and the time spent. vectors (R, H): where `tail` has regions."""
        return decoded(self, [(frame, tail, vectors)])[0]

    def _read(self, frame: Frame, tail: Tail, vectors: Array | None) -> dict[str, Value]:
        """Conditions (1, K, D) and queries (1, Q, D). The first prompt about a frame reads head and image too."""
        context = frame.context
        if context is None:
            raise ValueError("the frame was encoded by another family")
        head = self.prompt.head
        start = len(head) + len(frame.tokens)
        end = self._room(len(tail))
        rows = self.table(np.where(tail.ids == REGION, 0, tail.ids))
        if vectors is not None:
            rows[tail.ids == REGION] = vectors
        parts = tail.parts(self._rows_max)
        # Where the engine cannot go on behind the picture all is read again.
        first = context.length < start or not context.can_append(len(rows[parts[0]]), start)
        context.rewind(0 if first else start, end)
        kind = np.array([self.condition_kinds[tail.kind]], np.int64)
        before = self._beginning(context, frame, kind, len(rows[parts[0]])) if first else Joined(())
        if len(before) + len(rows[parts[0]]) > self._rows_max < ROWS_MAX:
            before = self._filled(context, before, kind)
        found: dict[str, list[Value]] = {"conditions": [], "queries": []}
        for part in parts:
            shift = len(before)
            inside = (tail.mask_rows >= part.start) & (tail.mask_rows < part.stop)
            pool = np.pad(tail.pool(part), ((0, 0), (shift, 0)))
            read = self._asked(
                context,
                Joined((*before.parts, rows[part])),
                pool,
                tail.mask_rows[inside] - part.start + shift,
                kind,
            )
            for name, values in found.items():
                values.append(read[name])
            before = Joined(())
        return {
            name: values[0] if len(values) == 1 else np.concatenate([np.asarray(v) for v in values], axis=1)
            for name, values in found.items()
        }

    def _beginning(self, context: Context, frame: Frame, kind: Array, behind: int) -> Joined:
        """What `context`, which is empty, has to read of head and picture before `behind` others."""
        head = Joined((self.table(self.prompt.head),))

        def read(empty: Context) -> None:
            self._filled(empty, head, kind)

        next_ones = min(len(frame.tokens) + behind, self._rows_max)
        if self.prefixes is not None and self.prefixes.begin(context, len(head), read, next_ones):
            return Joined((frame.tokens,))
        return Joined((*head.parts, frame.tokens))

    def _filled(self, context: Context, before: Joined, kind: Array) -> Joined:
        """Read all of `before` in pieces that the engine takes; nothing is left of it."""
        for start in range(0, len(before), self._rows_max):
            piece = before.rows(start, min(start + self._rows_max, len(before)))
            self._asked(context, piece, np.zeros((0, len(piece)), np.float32), np.zeros(0, np.int64), kind)
        return Joined(())

    def _asked(
        self, context: Context, rows: Joined, pool: Array, query_rows: Array, kind: Array
    ) -> dict[str, Value]:
        """Conditions (1, K, D) and queries (1, Q, D) of these rows. Where K or Q is 0 one of no meaning is asked for
        and dropped: an engine is tuned for one or more."""
        found = context.read(
            rows,
            {
                "pool": (pool if len(pool) else np.zeros((1, len(rows)), np.float32))[None],
                "query_rows": query_rows if len(query_rows) else np.zeros(1, np.int64),
                "condition_kind": kind,
            },
        )
        return {
            "conditions": found["conditions"] if len(pool) else found["conditions"][:, :0],
            "queries": found["queries"] if len(query_rows) else found["queries"][:, :0],
        }

    def _room(self, tail: int) -> int:
        """Positions of a prompt whose tail has `tail`. Raises InputError where the model has fewer."""
        end = len(self.prompt.head) + self.image_tokens + tail
        if end > self.max_positions:
            raise InputError(
                f"The prompt takes {end:,} positions; this model has {self.max_positions:,}. "
                "Name fewer classes or regions, or say it in fewer words."
            )
        return end

    def _track(self, frame: Frame, vectors: Array, labels: list[str]) -> Tracked:
        logits, scores, timing = self._decode(frame, self.prompt.regions(len(vectors)), vectors)
        with stage(timing, "masks"):
            result = tracked(logits, scores, labels, self._sizes(frame))
        return replace(result, timing=timing)

    def _first(self, frame: Frame, regions: Regions) -> Tracked:
        if len(regions.masks) < len(regions):
            masks = self.segment(frame, regions).masks
        else:
            blank = np.zeros((0, 0), np.float32)
            masks = [
                Mask(mask, 1.0, label, None, box_of(mask), blank)
                for mask, label in zip(regions.masks, labels_of(regions), strict=True)
            ]
        return Tracked(masks, fused(masks, _size(frame)), {})

    def _remembered(self, frame: Frame, result: Tracked, before: Array) -> Array:
        """Vectors for the next frame: of this frame's masks, or the ones before."""
        masks = [mask.mask for mask in result.masks]
        if not distinct(masks):
            return before
        try:
            return region_vectors(masks, np.asarray(frame.tokens), frame.content, self.image_spec.size)
        except InputError:  # a mask too small for the network's input
            return before


def _query(prompt: Query | str) -> Query:
    query = Refer(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(query, Query):
        raise refuse(query, "psalm", ANSWERS)
    return query


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.shape[0], frame.image.shape[1]
