"""Language weights rounded to what their layers really get, one layer in memory at a time.

`LanguageRounding(tensor, config, texts, ...)(name)` gives the rounded weight of a linear layer. Layers are asked
for in order; the first question about one rounds all of it, with the texts as they leave the layers before, both
as the original has them and as the rounded model has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pixelrt_export.graphs.language import Tensor, build_layer
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.blocks import Blocks, block_of
from pixelrt_export.quantize.gptq import round_with_inputs, spans
from pixelrt_export.quantize.probe import Probe

LAYER = re.compile(r"language\.layers\.(\d+)\.")


@dataclass
class Text:
    """What the language model reads of one picture and question: S tokens."""

    states: np.ndarray  # (S, H) float32, at first the embeddings
    visible: np.ndarray  # (S,) bool: False where no later token may look

    def inputs(self, states: np.ndarray, config: LanguageConfig, layer: int) -> dict[str, np.ndarray]:
        count = len(states)
        empty = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
        seen = np.tri(count, dtype=np.bool_) & self.visible
        return {
            "inputs_embeds": states[None],
            "position_ids": np.arange(count)[None],
            "attn_mask": seen[None, None],
            f"past.{layer}.key": empty,
            f"past.{layer}.value": empty,
        }


class LanguageRounding:
    def __init__(
        self,
        tensor: Tensor,
        config: LanguageConfig,
        texts: Sequence[Text],
        block: int,
        keep: Callable[[str], bool],
        progress: Callable[[int, int], None] = lambda layer, layers: None,
    ) -> None:
        """keep: layers (by name) whose weights stay as they are."""
        self.tensor, self.config, self.texts = tensor, config, texts
        self.block, self.keep, self._progress = block, keep, progress
        self._exact = [text.states for text in texts]
        self._states = [text.states for text in texts]
        self._done = 0
        self._rounded: dict[str, Blocks] = {}

    def __call__(self, name: str) -> Blocks | None:
        match = LAYER.match(name)
        if match is None:
            raise ValueError(f"{name} is in no layer of the language model")
        while self._done <= int(match[1]):
            self._rounded = dict(self._layer(self._done))  # of the layer before, all were asked for
            self._done += 1
            self._progress(self._done, self.config.layers)
        return self._rounded.get(name)

    def _layer(self, i: int) -> Iterator[tuple[str, Blocks]]:
        probe = Probe(lambda g: build_layer(g, self.tensor, self.config, i), opset=21)
        chosen: dict[str, int] = {}
        for name in probe.products:
            block = block_of(len(probe.weights[f"{name}.weight"]), self.block)
            if block and not self.keep(name):
                chosen[name] = block
        places = {probe.products[name]: chosen[name] for name in chosen}
        grams: dict[str, list[np.ndarray]] = {}
        crosses: dict[str, list[np.ndarray]] = {}
        after = []
        for text, exact, states in zip(self.texts, self._exact, self._states, strict=True):
            original = probe(text.inputs(exact, self.config, i))
            after.append(original["states"][0])
            found = probe(text.inputs(states, self.config, i))
            for place, block in places.items():
                x, x0 = found[place][0], original[place][0]
                for part, span in enumerate(spans(x.shape[1], block)):
                    add(grams.setdefault(place, []), part, x[:, span].T @ x[:, span])
                    add(crosses.setdefault(place, []), part, x[:, span].T @ x0[:, span])
        self._exact = after
        for name, block in chosen.items():
            key, place = f"{name}.weight", probe.products[name]
            blocks = round_with_inputs(probe.weights[key], block, grams[place], crosses[place])
            probe.weights[key] = blocks.dense()
            yield name, blocks
        self._states = [
            probe(text.inputs(states, self.config, i), taps=False)["states"][0]
            for text, states in zip(self.texts, self._states, strict=True)
        ]


def add(sums: list[np.ndarray], part: int, value: np.ndarray) -> None:
    if part == len(sums):
        sums.append(value)
    else:
        sums[part] += value
