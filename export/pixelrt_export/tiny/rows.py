"""Several questions packed behind one image prefix: they share it and do not see each other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pixelrt_export.tiny.questions import MIX, caption, question
from pixelrt_export.tiny.things import Thing
from pixelrt_export.tiny.tokenizer import BOS, HEAD, Tokenizer

REPEATED_SEG_WEIGHT = 0.1  # [SEG1]..[SEG5] always follow [SEG0]: nothing to learn there after a minute


@dataclass
class Rows:
    """T packed positions behind a prefix of `prefix` positions."""

    ids: Tensor  # (B, T)
    segment: Tensor  # (B, T): 1, 2.. the question a position belongs to, -1 padding
    position: Tensor  # (B, T): as if the question stood alone behind the prefix
    labels: Tensor  # (B, T): answer ids at the position of their own, -100 elsewhere
    weight: Tensor  # (B, T)
    targets: list[tuple[int, int, Thing]]  # row, position of its [SEG0], what it stands for


class Packer:
    def __init__(self, tokenizer: Tokenizer, image_tokens: int, mix: Mapping[str, float] = MIX):
        self.tokenizer, self.mix = tokenizer, mix
        self.before = [BOS, *tokenizer.encode(HEAD + "<im_start>")]
        self.after = tokenizer.encode("<im_end>")
        self.prefix = len(self.before) + image_tokens + len(self.after)
        self.asked = cache(lambda text: tokenizer.encode(f"{text} ASSISTANT:"))
        self.answered = cache(tokenizer.answer)

    def pack(self, scenes: list[list[Thing]], questions: int, rng: random.Random) -> Rows:
        """A caption and `questions` random questions for each scene."""
        rows, targets = [], []
        for b, things in enumerate(scenes):
            row = []
            for segment, asked in enumerate(
                [
                    caption(things),
                    *(question(things, rng, mix=self.mix) for _ in range(questions)),
                ],
                1,
            ):
                start, ids, answer = len(row), self.asked(asked.text), self.answered(asked.answer)
                row += [(i, segment, self.prefix + k, -100) for k, i in enumerate(ids)]
                row += [(i, segment, self.prefix + len(ids) + k, i) for k, i in enumerate(answer)]
                marks = [start + len(ids) + k for k, i in enumerate(answer) if i == self.tokenizer.seg_ids[0]]
                targets += [(b, at, thing) for at, thing in zip(marks, asked.targets, strict=True)]
            rows.append(row)
        longest = max(map(len, rows))
        table = torch.tensor([row + [(0, -1, 0, -100)] * (longest - len(row)) for row in rows])
        ids, segment, position, labels = table.unbind(-1)
        repeated = torch.isin(labels, torch.tensor(self.tokenizer.seg_ids[1:]))
        weight = (labels >= 0).float() * torch.where(repeated, REPEATED_SEG_WEIGHT, 1.0)
        return Rows(ids, segment, position, labels, weight, targets)

    def allowed(self, rows: Rows, image_valid: Tensor) -> Tensor:
        """(B, 1, L, L) bool: causal, valid prefix, own segment."""
        batch, length = len(rows.ids), self.prefix + rows.ids.shape[1]
        segment = torch.cat([rows.segment.new_zeros(batch, self.prefix), rows.segment], dim=1)
        valid = torch.ones(batch, length, dtype=torch.bool)
        valid[:, len(self.before) : len(self.before) + image_valid.shape[1]] = image_valid
        shared = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return (shared & valid[:, None, :] & causal)[:, None]
