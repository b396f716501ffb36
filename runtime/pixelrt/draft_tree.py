"""Several drafts as one tree: what two of them begin with is read once, and no branch sees another.

    sure , the mug .                      0 sure  1 ,  2 the  3 mug  4 .
    sure , the mug and the cup .                                     5 and  6 the  7 cup  8 .

Each token looks at those on its way from the root and stands as many places behind the prompt, so that the model says
of it what it would say of that draft alone (Miao et al. 2024, SpecInfer).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = -1  # the token before the drafts


class Tree:
    """tokens, parents (N,): in the order of the drafts, so the first of them lies in a row, and N tokens from the
    beginning are a tree again."""

    def __init__(self, drafts: Iterable[Sequence[int]], deepest: int) -> None:
        """deepest: tokens of a draft that are kept."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        for draft in drafts:
            node = ROOT
            for token in draft[: max(0, deepest)]:
                if (node, token) not in self._children:
                    self._children[node, token] = len(self.tokens)
                    self.parents.append(node)
                    self.tokens.append(token)
                node = self._children[node, token]

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, count: int) -> None:
        """Keep the first `count` tokens."""
        del self.tokens[count:], self.parents[count:]
        self._children = {way: node for way, node in self._children.items() if node < count}

    def child(self, node: int, token: int) -> int | None:
        """The node of `token` behind `node`; None where no draft goes on so."""
        return self._children.get((node, token))

    @property
    def trunk(self) -> int:
        """Tokens of the first draft."""
        return straight([parent + 1 for parent in self.parents])

    @property
    def depth(self) -> int:
        """Tokens of the longest draft."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return max(depths, default=0)

    def sees(self) -> NDArray[np.bool_] | None:
        """(N, N): which tokens each of them looks at, itself among them; None where all lie in a row."""
        if self.trunk == len(self):
            return None
        seen = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                seen[node] |= seen[parent]
        return seen


def straight(way: Sequence[int]) -> int:
    """How many nodes of a way from the root lie in the cache as if nothing else had been drafted."""
    return next((at for at, node in enumerate(way) if node != at), len(way))
