"""From a question to token ids, by the template and the tokenizer of the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from pixelrt.errors import InputError

IMAGE = "<image>"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the image tokens."""

    head: list[int]
    tail: list[int]

    def input_ids(self) -> list[int]:
        """One list with -200 for the image, the form the original code uses."""
        return [*self.head, -200, *self.tail]


@dataclass(frozen=True)
class PromptBuilder:
    """template: the conversation with `{question}`; it names the image once, as `<image>`."""

    tokenizer: tokenizers.Tokenizer
    template: str
    bos: int
    max_tokens: int  # positions of the model less those of the image
    _longest_token: int = 64  # characters; bounds the work spent on a hopeless text

    @classmethod
    def from_manifest(
        cls, tokenizer: Path, prompt: dict[str, Any], bos: int, max_tokens: int
    ) -> PromptBuilder:
        return cls(tokenizers.Tokenizer.from_file(str(tokenizer)), prompt["template"], bos, max_tokens)

    def __call__(self, question: str) -> Prompt:
        """Ids of the question in the template.

        A text that itself holds `<image>` is taken as a complete prompt: an earlier turn, or the beginning of
        the answer, can be given that way. Raises InputError for an empty or over-long question.
        """
        if not isinstance(question, str) or not question.strip():
            raise InputError("The prompt is empty. Say what to segment, for example: Segment the red circle.")
        if len(question) > self.max_tokens * self._longest_token:
            raise InputError(
                f"The prompt has {len(question)} characters; this model takes {self.max_tokens} tokens. Shorten it."
            )
        text = question if IMAGE in question else self.template.replace("{question}", question)
        if text.count(IMAGE) != 1:
            raise InputError(
                f"The prompt names {IMAGE} {text.count(IMAGE)} times; name it once, or not at all."
            )
        head, tail = (self._encode(part) for part in text.split(IMAGE))
        count = 1 + len(head) + len(tail)
        if count >= self.max_tokens:
            raise InputError(
                f"The prompt is {count} tokens long; this model takes fewer than {self.max_tokens} beside the "
                "image. Shorten it."
            )
        return Prompt([self.bos, *head], tail)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids
