"""What a context gives the language graph: who looks at whom, and the rows in the order they were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixelrt.bundle import GraphFile, Tensor
from pixelrt.engine import HostMemory
from pixelrt.language import Context

WIDTH = 4
CACHES = tuple(Tensor(f"past.0.{part}", "activations", ("B", 1, "M", 2)) for part in ("key", "value"))


class Limited(HostMemory):
    def __init__(self, tokens: int | None, step: int) -> None:
        super().__init__()
        self.tokens, self.step = tokens, step

    def most(self, name: str, axis: int) -> int | None:
        return self.tokens if name == "inputs_embeds" else None


class Listening:
    """Says of each row asked for what its embedding is; keeps the masks that it was given."""

    file = GraphFile(Path("language.onnx"), "float32", 24, "in_place", CACHES, ())

    def __init__(self, tokens: int | None = None, step: int = 1) -> None:
        self.memory = Limited(tokens, step)
        self.masks: list[np.ndarray] = []

    def __call__(self, inputs: Mapping[str, Any], into: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.masks.append(inputs["attn_mask"][0, 0])
        said = np.asarray(inputs["inputs_embeds"])[:, inputs["logit_rows"]]
        return {"logits": said, "hidden": -said, **(into or {})}


def looks_at(visible: np.ndarray, start: int, end: int, width: int) -> np.ndarray:
    """(end - start, width): True where a new token may look, one by one."""
    mask = np.zeros((end - start, width), np.bool_)
    for new in range(start, end):
        for seen in range(new + 1):
            mask[new - start, seen] = visible[seen]
    return mask


@pytest.mark.parametrize("step", [1, 8])
def test_a_token_looks_at_what_is_visible_before_it(step: int) -> None:
    rng, engine = np.random.default_rng(0), Listening(step=step)
    context, visible, start = Context(engine, 40), np.ones(40, np.bool_), 0
    for count in (7, 1, 5, 1):
        end = start + count
        visible[start:end] = rng.random(count) < 0.7
        context(rng.standard_normal((count, WIDTH)), [count - 1], visible[start:end])
        width = -(-end // step) * step
        assert np.array_equal(engine.masks[-1], looks_at(visible, start, end, width))
        start = end


@pytest.mark.parametrize("tokens", [None, 4, 5, 12])
def test_rows_come_in_the_order_asked_for(tokens: int | None) -> None:
    embeddings = np.random.default_rng(1).standard_normal((12, WIDTH))
    for rows in ([11], [3, 0, 9, 9, 4], [6, 7], []):
        if tokens in (4, 5) and not rows:
            continue  # in pieces something has to be asked
        found = Context(Listening(tokens), 12)(embeddings, rows)
        assert np.array_equal(found.logits, embeddings[rows])
        assert np.array_equal(found.hidden, -embeddings[rows])
