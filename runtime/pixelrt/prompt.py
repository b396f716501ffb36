"""From a question to token ids, by the template and the tokenizer of the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tokenizers

from pixelrt.errors import InputError

IMAGE, QUESTION = "<image>", "{question}"
NO_IMAGE = f"The prompt names {IMAGE}, which stands for the picture and is put in by itself. Leave it out."
LONGEST_TOKEN = 64  # characters; bounds the work spent on a hopeless text


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
    """template: the conversation, with `{question}` and with `<image>` where the image tokens go."""

    tokenizer: tokenizers.Tokenizer
    template: str
    bos: int
    pad: int
    max_tokens: int  # that a prompt may have beside the image

    def __post_init__(self) -> None:
        if self.template.count(IMAGE) != 1 or self.template.count(QUESTION) != 1:
            raise InputError(
                f"The bundle's prompt template must name {IMAGE} and {QUESTION} once. Export it again."
            )

    @property
    def image_mark(self) -> str:
        """`<image>` with what the template puts right before and behind it."""
        return next(word for word in self.template.split() if IMAGE in word)

    def __call__(self, question: str) -> Prompt:
        """Ids of the question in the template.

        A text that holds `image_mark` is taken as a complete prompt: earlier turns, or the beginning of the
        answer, can be given that way. Raises InputError for an empty, over-long or misleading question.
        """
        self._check(question)
        whole = self.image_mark in question
        text = question if whole else self.template.replace(QUESTION, question)
        if text.count(IMAGE) != 1:
            raise InputError(NO_IMAGE)
        head, tail = (self._encode(part) for part in text.split(IMAGE))
        self._check_ids([self.bos, *head, *tail])
        return Prompt([self.bos, *head], tail)

    def turn(self, question: str) -> list[int]:
        """Ids of a further question, to stand behind the end-of-text token of an answer.

        The original writes `SYSTEM USER: question ASSISTANT: answer</s>USER: question ASSISTANT:` with the picture
        before the first question (model/llava/conversation.py, SeparatorStyle.TWO with sep " " and sep2 "</s>"); its
        tokenizer encodes what stands between two special tokens on its own. Raises InputError as for a first question.
        """
        self._check(question)
        if IMAGE in question:
            raise InputError(NO_IMAGE)
        before, after = self.template.split(self.image_mark)
        role = before.split()[-1]
        ids = self._encode(f"{role} {after.lstrip().replace(QUESTION, question)}")
        self._check_ids(ids)
        return ids

    def _check(self, question: str) -> None:
        if not isinstance(question, str) or not question.strip():
            raise InputError("The prompt is empty. Say what to segment, for example: Segment the red circle.")
        if len(question) > self.max_tokens * LONGEST_TOKEN:
            raise InputError(
                f"The prompt has {len(question)} characters; this model takes {self.max_tokens} tokens. Shorten it."
            )

    def _check_ids(self, ids: list[int]) -> None:
        if len(ids) >= self.max_tokens:
            raise InputError(
                f"The prompt is {len(ids)} tokens long; this model takes fewer than {self.max_tokens} beside the "
                "image. Shorten it."
            )
        if self.pad in ids:  # the original reads it as the end of the prompt
            name = self.tokenizer.id_to_token(self.pad)
            raise InputError(f"The prompt holds {name}, which the model takes for its end. Leave it out.")

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # bytes of a terminal that are no UTF-8 arrive as lone surrogates
            raise InputError("The prompt is not valid Unicode. Type it again.") from None
        return ids


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json. Raises InputError where it is none."""
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path} is not a tokenizer ({error}). Export the bundle again.") from None
