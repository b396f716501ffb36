"""PixelLM: a question is answered word by word; each run of codebook tokens becomes a mask."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.batch import Opened, each, encoded, frames_of, opened, paired, read_all
from pixelrt.bundle import Bundle
from pixelrt.conversation import Conversation
from pixelrt.drafts import Drafts
from pixelrt.engine import Array, Backend, Joined
from pixelrt.families import pixellm_drafts
from pixelrt.families.pixellm_batch import answered
from pixelrt.families.pixellm_manifest import FORM, check_tokens
from pixelrt.families.pixellm_masks import drawn, labelled
from pixelrt.families.pixellm_text import rendered
from pixelrt.generate import (
    Codebook,
    Generation,
    check_prompted,
    check_settings,
    generate,
    no_drafts,
    prompt_rows,
)
from pixelrt.image import ImageSpec
from pixelrt.language import Context, positions
from pixelrt.manifest import MANIFEST, check
from pixelrt.masks import Answer, Decoding, Mask, label_spans
from pixelrt.prefix import Prefixes, tokens_of
from pixelrt.prompt import Prompt, PromptBuilder, read_tokenizer
from pixelrt.queries import Query, refuse
from pixelrt.segmenter import Frame, frame_of, stage
from pixelrt.streaming import streamed
from pixelrt.tokens import TokenTable

FEATURES = ("level0", "level0_key", "level0_value", "level0_query", "level1")


def open_family(bundle: Bundle, backend: Backend) -> PixelLM:
    return PixelLM(bundle, backend)


class PixelLM:
    """A loaded PixelLM bundle; see `pixelrt.segmenter.Segmenter`.

    drafts: what answers are guessed from, to read several tokens at once; None reads one by one. prefixes: what was
    read of a frame stays there for its next question; None reads it again. No answer depends on either.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend.name
        manifest = bundle.manifest
        check(manifest, FORM, str(bundle.path / MANIFEST))
        tokens, language, table = manifest["tokens"], manifest["language"], manifest["embeddings"]
        self.table = TokenTable(bundle.file(table["file"]), table["dtype"], table["shape"])
        self.codebook, self.scales = Codebook(tuple(tokens["seg"])), tokens["seg_scales"]
        self._encoder = backend.open("encoder")
        self._language = backend.open("language")
        self._pixel_decoder = backend.open("pixel_decoder")
        self.eos = tokens["eos"]
        self.max_positions = positions(self._language, language["max_positions"])
        check_tokens(bundle, self.codebook, self.scales)
        self.image_spec = ImageSpec.from_dict(manifest["image"])
        self.prompt = PromptBuilder(
            read_tokenizer(bundle.file(tokens["tokenizer"])),
            manifest["prompt"]["template"],
            tokens["bos"],
            tokens["pad"],
            # Room for the image, and to complete a run that begins at the very end.
            self.max_positions - tokens["image_tokens"] - self.codebook.run + 1,
        )
        self.prefixes: Prefixes | None = Prefixes(self._language)
        self.drafts: Drafts | None = pixellm_drafts.new(
            self.prompt, self.codebook, self.eos, manifest.get("drafts", ())
        )
        self.drafts.token_cost = pixellm_drafts.token_cost(manifest, "cpu" not in backend.name)

    def encode(self, image: Any) -> Frame:
        """All that depends on the image alone; reuse the frame for every question about it."""
        return next(self._frames([opened(image)]))

    def encode_batch(self, images: Sequence[Any]) -> list[Frame]:
        """`encode` of each, several in one run of the encoder."""
        return list(self._frames(each("Image", images, opened)))

    def _frames(self, pictures: Sequence[Opened]) -> Iterator[Frame]:
        inputs = ("pixels", "patch_valid")
        for picture, prepared, out in encoded(self._encoder, self.image_spec, inputs, pictures):
            yield Frame(
                picture.rgb,
                prepared.content,
                out["image_tokens"][0],
                prepared.token_valid,
                {name: out[name] for name in FEATURES},
                self.bundle.sha256,
                picture.timing,
            )

    def check(
        self,
        prompt: str | Query,
        image: Any = None,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> list[int]:
        """See `pixelrt.segmenter.Segmenter`. No question depends on the image."""
        return self._asked(prompt, max_new_tokens, seg_runs).input_ids()

    def _asked(self, prompt: str | Query, max_new_tokens: int, seg_runs: str) -> Prompt:
        if isinstance(prompt, Query):
            raise refuse(prompt, "pixellm", {"a question in words": "Segment the mug."})
        check_settings(max_new_tokens, seg_runs)
        ids = self.prompt(prompt)
        check_prompted(sum(token in self.codebook.ids for token in ids.tail), self.codebook, seg_runs)
        return ids

    def segment(
        self,
        frame: Frame | Any,
        prompt: str | Query,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> Answer:
        """Answer `prompt` about a frame.

        prompt: a question; or a complete prompt, recognised by its `<im_start><image><im_end>`. max_new_tokens:
        at most, but for the rest of a mask's tokens; fewer where the model has no positions left
        (`Answer.finished` tells). seg_runs: `complete` finishes every run of codebook tokens once begun;
        `original` does as the original code, where one malformed run drops all masks of the answer.
        Raises InputError.
        """
        ids = self._asked(prompt, max_new_tokens, seg_runs)
        frame = frame_of(self, frame)
        timing: dict[str, float] = {}
        with stage(timing, "language"):
            *_, generation = self.steps(frame, ids, max_new_tokens, seg_runs)
        return self.answer(frame, generation, timing)

    def segment_batch(
        self, images: Any, prompts: Any, max_new_tokens: int = 512, seg_runs: str = "complete"
    ) -> list[Answer]:
        """Several questions at once; see `pixelrt.segmenter.Segmenter`."""
        pictures, which, asked = paired(images, prompts)
        ids = each("Prompt", asked, lambda prompt: self._asked(prompt, max_new_tokens, seg_runs))
        frames = frames_of(read_all(self, pictures), self._frames)
        return answered(self, [frames[i] for i in which], ids, max_new_tokens, seg_runs)

    def stream(
        self,
        frame: Frame | Any,
        prompt: str | Query,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> Iterator[str | Mask | Answer]:
        """`segment`'s answer as it comes; see `pixelrt.segmenter.Segmenter` and `pixelrt.streaming`."""
        ids = self._asked(prompt, max_new_tokens, seg_runs)
        frame = frame_of(self, frame)
        steps = self.steps(frame, ids, max_new_tokens, seg_runs)
        return streamed(self, frame, steps, seg_runs == "complete")

    def steps(
        self, frame: Frame, ids: Prompt, max_new_tokens: int, seg_runs: str
    ) -> Generator[Generation, None, None]:
        """The answer growing by one token at a time; see `generate`."""
        embeddings, visible = self.embedded(frame, ids)
        length = len(visible)
        budget = self.budget(length, max_new_tokens)
        with self._context(frame, ids, length + budget + self.codebook.run - 1) as context:
            read = context.position
            yield from self.generated(
                context,
                embeddings.rows(read, length),
                visible[read:],
                ids.tail,
                max_new_tokens=budget,
                seg_runs=seg_runs,
            )

    def budget(self, length: int, max_new_tokens: int) -> int:
        """Tokens that an answer to a prompt of `length` may have, but for the rest of a run."""
        return min(max_new_tokens, self.max_positions - length - (self.codebook.run - 1))

    def embedded(self, frame: Frame, ids: Prompt) -> tuple[Joined, NDArray[np.bool_]]:
        """What the language model reads of a prompt, (L, H), and which of it later tokens may look at, (L,)."""
        embeddings = Joined((self.table(ids.head), frame.tokens, self.table(ids.tail)))
        visible = np.ones(len(embeddings), np.bool_)
        visible[len(ids.head) : len(ids.head) + len(frame.tokens)] = frame.token_valid
        return embeddings, visible

    def generated(
        self,
        context: Context,
        prefill: Joined,
        visible: NDArray[np.bool_],
        question: Sequence[int],
        *,
        max_new_tokens: int,
        seg_runs: str,
    ) -> Generator[Generation, None, None]:
        """See `generate`. question: the ids that `prefill` ends with; its targets are drawn too."""
        draft = self.drafts.of(question) if self.drafts else None
        for generation in generate(
            context,
            self.table,
            prefill,
            visible,
            prompt_rows(question, len(prefill) - len(question), self.codebook),
            self.codebook,
            eos=self.eos,
            max_new_tokens=max_new_tokens,
            seg_runs=seg_runs,
            drafter=draft or no_drafts,
        ):
            yield generation
        if self.drafts and draft and generation.finished:
            self.drafts.learn(draft, generation.token_ids)

    def answer(
        self,
        frame: Frame,
        generation: Generation,
        timing: dict[str, float],
        masks: Sequence[Mask] | None = None,
    ) -> Answer:
        """Of a generation that is over. masks: where they are drawn already."""
        text, spans = self.render(generation.token_ids)
        if masks is None:
            masks = self.masks(frame, generation, text, spans, timing)
        decoding = Decoding(generation.forwards, generation.drafted, generation.drafted - generation.refused)
        targets = generation.targets(self.codebook)
        return Answer(text, generation.token_ids, masks, timing, generation.finished, targets, decoding)

    def draw(self, frame: Frame, targets: Array, timing: dict[str, float]) -> list[Mask]:
        """Masks of an answer's `targets` (N, run, H) in any frame, without label and span; the language model rests.

        timing: the stages are added to it.
        """
        frame = frame_of(self, frame)
        hidden: Array = targets.reshape(len(targets), self.scales, self.codebook.run // self.scales, -1)
        return drawn(self._pixel_decoder, frame, hidden, timing)

    def chat(self, frame: Frame | Any) -> Conversation:
        """Several questions about a frame, each knowing what was said before it; see `pixelrt.conversation`."""
        return Conversation(self, self._language, frame_of(self, frame))

    @contextmanager
    def _context(self, frame: Frame, ids: Prompt, capacity: int) -> Iterator[Context]:
        """What the language model has read of this prompt already, and nothing behind it."""
        if self.prefixes is None:
            yield Context(self._language, capacity)
            return
        with self.prefixes.context(frame, ids.head, capacity) as context:
            if ids.tail[0] in self.codebook.ids:  # predicted by the picture's last token
                context.rewind(min(context.length, len(ids.head)))
            end = len(ids.head) + tokens_of(frame, context) + len(ids.tail)
            if not context.can_append(end - context.length, context.length):
                context.rewind(0)
            yield context

    def render(self, token_ids: list[int]) -> tuple[str, dict[int, tuple[int, int]]]:
        """Readable text with `[SEG]` where a full run stands; index of each run's first token -> its span."""
        return rendered(self.prompt.tokenizer, self.codebook, self.eos, token_ids)

    def masks(
        self,
        frame: Frame,
        generation: Generation,
        text: str,
        spans: dict[int, tuple[int, int]],
        timing: dict[str, float],
    ) -> list[Mask]:
        """All masks of a generation that is over."""
        targets = generation.targets(self.codebook)
        if targets is None:
            return []
        return labelled(self.draw(frame, targets, timing), self.places(generation, text, spans))

    def places(
        self, generation: Generation, text: str, spans: dict[int, tuple[int, int]]
    ) -> list[tuple[str, tuple[int, int] | None]]:
        """Label of each target and where its marker is in the text; those that follow change neither."""
        labels = label_spans(text, list(spans.values()))
        placed = {start: (label, spans[start]) for start, label in zip(spans, labels, strict=True)}
        # Targets named in the prompt, or in pieces, have no place in the answer.
        starts = generation.run_starts(self.codebook)
        return [("", None) if start is None else placed.get(start, ("", None)) for start in starts]
