"""PSALM's prompt: `text <image> text conditions text <mask tokens>`, all but the image tokens decided here.

A condition is what masks are scored against: a class name, a sentence, or a region. The text between markers is
tokenised piece by piece, as the original does: `, ` before a class name never joins it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pixelrt.errors import InputError
from pixelrt.prompt import read_tokenizer
from pixelrt.queries import Classes, Refer, Regions

IMAGE, MASKS, CONDITIONS = "<image>", "<seg>", "{conditions}"
REGION = -203  # in ids: a region's vector stands here


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows the image, S positions."""

    kind: str  # class, sentence or region
    ids: NDArray[np.int64]  # (S,) rows of the token table, or REGION
    condition: NDArray[np.int64]  # (S,) k + 1 on every token of condition k, else 0
    mask_rows: NDArray[np.int64]  # (Q,) where the mask tokens are

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def conditions(self) -> int:
        """K."""
        return int(self.condition.max(initial=0))

    def pool(self, part: slice) -> NDArray[np.float32]:
        """(K', S'): row k averages the tokens of the k-th condition that lies in `part`."""
        condition = self.condition[part]
        belongs = condition == np.unique(condition[condition > 0])[:, None]
        return np.asarray(belongs / belongs.sum(1, keepdims=True), np.float32)

    def parts(self, limit: int) -> list[slice]:
        """Cut into parts of at most `limit` positions, but never within a condition or the mask tokens."""
        whole = self.condition.copy()
        whole[self.mask_rows] = -1
        cuts = np.flatnonzero((whole[1:] != whole[:-1]) | (whole[1:] == 0)) + 1
        parts, start = [], 0
        while len(self) - start > limit:
            fitting = cuts[(cuts > start) & (cuts <= start + limit)]
            later = cuts[cuts > start]
            stop = int(fitting[-1] if len(fitting) else later[0] if len(later) else len(self))
            parts.append(slice(start, stop))
            start = stop
        return [*parts, slice(start, len(self))] if start < len(self) else parts


class PsalmPrompt:
    """Templates and tokenizer of a bundle. `head`: ids before the image, the same in every prompt."""

    def __init__(
        self, tokenizer: Path | tokenizers.Tokenizer, prompt: dict[str, Any], tokens: dict[str, Any]
    ) -> None:
        self.tokenizer = read_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        self.background: str = prompt["background"]
        self._prompt = prompt
        first, count = tokens["mask_tokens"]["first"], tokens["mask_tokens"]["count"]
        self._mask_ids = list(range(first, first + count))
        heads = {text.partition(IMAGE)[0] for text in prompt["templates"].values()}
        if len(heads) != 1:
            raise InputError("the bundle's templates begin with different texts. Export it again.")
        self.head: list[int] = self._encode([heads.pop()])[0]

    def classes(self, names: Sequence[str]) -> Tail:
        """names: with the background, which is a class like the others, at the end."""
        return self._tail("class", self._encode([name + self._prompt["class_suffix"] for name in names]))

    def sentence(self, sentences: Sequence[str]) -> Tail:
        """All sentences are one condition. The template has the full stop."""
        item: str = self._prompt["sentence_item"]
        text = "".join(item.replace("{sentence}", one.removesuffix(".")) for one in sentences)
        return self._tail("sentence", self._encode([text + self._prompt["sentence_suffix"]]))

    def regions(self, count: int) -> Tail:
        return self._tail("region", [[REGION]] * count)

    def _tail(self, kind: str, conditions: Sequence[Sequence[int]]) -> Tail:
        marker = self._prompt["condition"][kind]
        listed = self._prompt["separator"].join([marker] * len(conditions))
        text = self._prompt["templates"][kind].partition(IMAGE)[2].replace(CONDITIONS, listed)
        pieces = re.split(f"({re.escape(marker)}|{re.escape(MASKS)})", text)
        texts = iter(self._encode(pieces[::2]))
        runs: list[tuple[Sequence[int], int]] = []  # ids, and the condition they belong to
        count, mask_at = 0, 0
        for piece in pieces:
            if piece == marker:
                runs.append((conditions[count], count + 1))
                count += 1
            elif piece == MASKS:
                mask_at = sum(len(ids) for ids, _ in runs)
                runs.append((self._mask_ids, 0))
            else:
                runs.append((next(texts), 0))
        return Tail(
            kind,
            np.concatenate([np.asarray(ids, np.int64) for ids, _ in runs]),
            np.concatenate([np.full(len(ids), condition, np.int64) for ids, condition in runs]),
            np.arange(mask_at, mask_at + len(self._mask_ids)),
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        except TypeError:  # bytes of a terminal that are no UTF-8 arrive as lone surrogates
            raise InputError("The prompt is not valid Unicode. Type it again.") from None


def tail_of(prompt: PsalmPrompt, query: Classes | Refer | Regions) -> Tail:
    """How a query is written."""
    if isinstance(query, Classes):
        return prompt.classes([*query.names, prompt.background])
    return prompt.sentence(query.sentences) if isinstance(query, Refer) else prompt.regions(len(query))
