"""A conversation: several questions about one frame, each knowing what was said before it.

    chat = seg.chat(frame)
    chat.ask("Segment the red circle.")
    chat.ask("And the star beside it?")

Each question is read behind what the cache holds already; the answers are those of a model that reads everything anew.
What the model wrote stays as the tokens it wrote: the original writes an answer as text and tokenizes that again, which
gives the same tokens where the model spells words as its tokenizer does. An answer that was cut off is ended as if the
model had done so. Masks are those of the last answer alone; its targets may be named in the question, as for `segment`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixelrt.engine import Engine
from pixelrt.errors import InputError
from pixelrt.generate import check_prompted, check_settings
from pixelrt.language import Context
from pixelrt.masks import Answer
from pixelrt.prompt import Prompt
from pixelrt.segmenter import Frame, stage

if TYPE_CHECKING:
    from pixelrt.families.pixellm import PixelLM


class Conversation:
    """For one thread at a time."""

    def __init__(self, model: PixelLM, engine: Engine, frame: Frame) -> None:
        """engine: the language graph."""
        self.model, self.frame = model, frame
        self.said: Prompt | None = None  # all tokens up to the end of the last answer
        self._context = Context(engine, model.max_positions)

    def ask(self, question: str, max_new_tokens: int = 512, seg_runs: str = "complete") -> Answer:
        """The next question; see `segment` for what it may be. A question that is refused, or whose answer fails, is
        forgotten. Raises InputError: also where the model has no positions left."""
        model, context, codebook = self.model, self._context, self.model.codebook
        check_settings(max_new_tokens, seg_runs)
        if self.said is None:
            prompt = model.prompt(question)
            asked = prompt.tail
        else:
            asked = model.prompt.turn(question)
            ended = self.said.tail[-1:] == [model.eos]
            prompt = Prompt(self.said.head, [*self.said.tail, *([] if ended else [model.eos]), *asked])
        check_prompted(sum(token in codebook.ids for token in asked), codebook, seg_runs)
        embeddings, visible = model.embedded(self.frame, prompt)
        # Room to complete a run that begins at the very end.
        left = model.max_positions - len(embeddings) - (codebook.run - 1)
        if left < 1:
            raise InputError(
                f"With this question the conversation takes {len(embeddings):,} of the model's "
                f"{model.max_positions:,} positions, and an answer has no room. Begin another: seg.chat(frame)."
            )
        known = context.length
        if not context.can_append(len(embeddings) - known, known):
            context.rewind(0)
        start = context.length
        timing: dict[str, float] = {}
        try:
            with stage(timing, "language"):
                *_, generation = model.generated(
                    context,
                    embeddings.rows(start, len(embeddings)),
                    visible[start:],
                    asked,
                    max_new_tokens=min(max_new_tokens, left),
                    seg_runs=seg_runs,
                )
            answer = model.answer(self.frame, generation, timing)
        except BaseException:
            context.rewind(min(known, context.length))
            raise
        self.said = Prompt(prompt.head, [*prompt.tail, *generation.token_ids])
        return answer
