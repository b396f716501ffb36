"""PixelLM's first drafts: what a bundle says of answers, and the wordings that every PixelLM was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from pixelrt.drafts import Drafts, Example
from pixelrt.errors import InputError
from pixelrt.generate import Codebook
from pixelrt.prompt import PromptBuilder

MARK = "[SEG]"  # a mask, in words
# utils/utils.py of the original, ANSWER_LIST; the one it calls its default first.
ANSWERS = (
    "Sure, it is [SEG].",
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
FORM = [{"prompt": str, "answer": str}]  # of a manifest's `drafts`


def new(
    prompt: PromptBuilder, codebook: Codebook, eos: int, stored: Iterable[Mapping[str, str]] = ()
) -> Drafts:
    """stored: a manifest's `drafts`."""

    def ids(answer: str) -> list[int]:
        return [*answer_ids(prompt, answer, codebook.ids), eos]

    examples = [Example([], ids(answer)) for answer in ANSWERS]
    for row in stored:
        with suppress(InputError):  # a question that this model refuses: nobody will be answered like it
            examples.append(Example(prompt(row["prompt"]).tail, ids(row["answer"]), 1))
    return Drafts(codebook, examples)


def answer_ids(prompt: PromptBuilder, answer: str, seg: Sequence[int]) -> list[int]:
    """Ids of an answer with MARK where a mask stands; as the original writes one, with blanks between its tokens."""
    run = " ".join(prompt.tokenizer.id_to_token(token) or "" for token in seg)
    return list(prompt.tokenizer.encode(answer.replace(MARK, run), add_special_tokens=False).ids)
