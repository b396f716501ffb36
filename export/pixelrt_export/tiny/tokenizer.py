"""Sentencepiece vocabulary of the tiny model, and prompts as ids by the slow LLaMA tokenizer's rules."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from pixelrt_export.tiny.questions import caption, question
from pixelrt_export.tiny.scenes import scene

HEAD = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions. USER: "
)
IMAGE_ID, BOS, EOS = -200, 1, 2
SEG_TOKENS = tuple(f"[SEG{i}]" for i in range(6))
ADDED = (*SEG_TOKENS, "<im_start>", "<im_end>")
SEG_TEXT = " ".join(SEG_TOKENS)


def prompt_text(question_text: str) -> str:
    return f"{HEAD}<im_start><image><im_end>\n{question_text} ASSISTANT:"


def corpus(scenes: int) -> Iterator[str]:
    """Template, questions and answers; the pieces between added tokens stand alone, as they are encoded."""
    rng = random.Random(0)
    for seed in range(scenes):
        things = scene(10**8 + seed).things
        for asked in (caption(things), *(question(things, rng) for _ in range(4))):
            yield HEAD.rstrip()
            yield f"{asked.text} ASSISTANT:"
            yield from (part.strip() for part in asked.answer.split("[SEG]") if part.strip())


def train_model(scenes: int = 1500, pieces: int = 640) -> bytes:
    """A `tokenizer.model` with LLaMA's flags: BPE, byte fallback, identity, dummy prefix, split digits."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(scenes),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


class Tokenizer:
    """Text to ids: added tokens split the text, whitespace next to them goes, the rest is encoded."""

    def __init__(self, model: bytes, added: dict[str, int] | None = None):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self.pieces.get_piece_size()
        self.added = added or {token: size + i for i, token in enumerate(ADDED)}
        self.split = re.compile("(" + "|".join(map(re.escape, self.added)) + ")")
        self.seg_ids = [self.added[token] for token in SEG_TOKENS]

    @classmethod
    def read(cls, folder: Path) -> Tokenizer:
        return cls(
            (folder / "tokenizer.model").read_bytes(), json.loads((folder / "added_tokens.json").read_text())
        )

    def encode(self, text: str) -> list[int]:
        """Ids without bos. Blanks are stripped only on the sides where an added token stands."""
        parts, ids = self.split.split(text), []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self.added[part])
                continue
            part = part.lstrip() if i > 0 else part
            part = part.rstrip() if i + 1 < len(parts) else part
            ids += self.pieces.encode(part) if part else []
        return ids

    def prompt(self, question_text: str) -> list[int]:
        """bos, template, one IMAGE_ID, question: what generation starts from."""
        before, after = prompt_text(question_text).split("<image>")
        return [BOS, *self.encode(before), IMAGE_ID, *self.encode(after)]

    def answer(self, answer_text: str) -> list[int]:
        """'Sure, the red circle [SEG].' -> ids with six seg tokens a mask, and eos."""
        return [*self.encode(answer_text.replace("[SEG]", SEG_TEXT)), EOS]

    def text(self, ids: list[int]) -> str:
        """Ids of an answer -> text, [SEG] for each full run of six seg tokens."""
        names, out, run = {i: t for t, i in self.added.items()}, [], []
        for i in ids:
            if i in names or i in (BOS, EOS):
                out += [self.pieces.decode(run)] if run else []
                out += [names[i]] if i in names else []
                run = []
            else:
                run.append(i)
        out += [self.pieces.decode(run)] if run else []
        return re.sub(r" ([.,])", r"\1", " ".join(out).replace(SEG_TEXT, "[SEG]"))
