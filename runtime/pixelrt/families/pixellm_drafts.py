"""PixelLM's first drafts: what a bundle says of answers, and the wordings that every PixelLM was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

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
# Bytes a second from memory, operations a second, seconds of a step beside them: what machines that run such models
# have about, measured on none. A GPU as in a Jetson Orin; two to eight cores of a CPU.
GPU, CPU = (2e11, 4e13, 1e-4), (2e10, 1e11, 1e-3)
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.56, "nf4": 0.56}


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


def token_cost(manifest: Mapping[str, Any], on_gpu: bool) -> float:
    """Time of one more token in a step of the language model, in steps: operations against reading the weights.

    About 1 / 200 for 7 B in fp16 on a GPU and 2 / 3 for int4 on a CPU, so that drafts are many or few.
    """
    hidden, layers = manifest["language"]["hidden"], manifest["language"].get("layers", 32)
    weights = 12 * layers * hidden**2 + hidden * manifest["embeddings"]["shape"][0]
    size = weights * WEIGHT_BYTES.get(manifest["precision"].get("language", "fp16"), 2.0)
    bandwidth, operations, step = GPU if on_gpu else CPU
    cost: float = (2 * weights / operations) / (step + size / bandwidth)
    return cost


def answer_ids(prompt: PromptBuilder, answer: str, seg: Sequence[int]) -> list[int]:
    """Ids of an answer with MARK where a mask stands; as the original writes one, with blanks between its tokens."""
    run = " ".join(prompt.tokenizer.id_to_token(token) or "" for token in seg)
    return list(prompt.tokenizer.encode(answer.replace(MARK, run), add_special_tokens=False).ids)
