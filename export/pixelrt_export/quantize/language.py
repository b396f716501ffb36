"""Language weights rounded to what their layers really get, one layer in memory at a time.

`LanguageRounding(tensor, config, texts, ...)(name)` gives the rounded weight of a linear layer. Layers are asked
for in order; the first question about one rounds all of it, with the texts as they leave the layers before, both
as the original has them and as the rounded model has them. A layer that an earlier run has rounded is only gone
through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pixelrt_export.graphs.language import Tensor, build_layer
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.quantize.blocks import Blocks, block_of
from pixelrt_export.quantize.gptq import Inputs, round_with_inputs, spans
from pixelrt_export.quantize.probe import Probe

LAYER = re.compile(r"language\.layers\.(\d+)\.")
Arrays = dict[str, np.ndarray]


@dataclass
class Text:
    """What the language model reads of one picture and question: S tokens."""

    states: np.ndarray  # (S, H) float32, at first the embeddings
    visible: np.ndarray  # (S,) bool: False where no later token may look

    def inputs(self, states: np.ndarray, config: LanguageConfig, layer: int) -> Arrays:
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


class Memory(Protocol):
    """What outlives this process."""

    def known(self, name: str) -> Blocks | None:
        """The rounded weight of a linear layer, where it is written already."""
        ...

    def load(self) -> tuple[int, Arrays] | None:
        """What was saved last."""
        ...

    def save(self, layer: int, arrays: Callable[[], Arrays], size: int) -> None:
        """Arrays of `size` bytes with which to begin at this layer."""
        ...


class Forgetful:
    """No memory."""

    def known(self, name: str) -> Blocks | None:
        return None

    def load(self) -> tuple[int, Arrays] | None:
        return None

    def save(self, layer: int, arrays: Callable[[], Arrays], size: int) -> None:
        pass


class LanguageRounding:
    def __init__(
        self,
        tensor: Tensor,
        config: LanguageConfig,
        texts: Callable[[], Sequence[Text]],
        block: int,
        keep: Callable[[str], bool],
        progress: Callable[[float, int], None] = lambda layers, of: None,
        memory: Memory | None = None,
    ) -> None:
        """texts: asked for once, where no memory has them. keep: layers (by name) whose weights stay as they are."""
        self.tensor, self.config, self._read = tensor, config, texts
        self.block, self.keep, self._progress = block, keep, progress
        self.memory: Memory = memory or Forgetful()
        self._texts: Sequence[Text] = ()
        self._exact: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._done = 0
        self._rounded: dict[str, Blocks] = {}

    def __call__(self, name: str) -> Blocks | None:
        match = LAYER.match(name)
        if match is None:
            raise ValueError(f"{name} is in no layer of the language model")
        layer = int(match[1])
        if not self._texts:
            self._begin(layer)
        if self._done <= layer:
            self._rounded = {}  # of the layer before, all were asked for
        while self._done < layer:
            self._layer(self._done)
            self._done += 1
        if self._done == layer:
            size = sum(text.visible.nbytes + 2 * text.states.nbytes for text in self._texts)
            self.memory.save(layer, self._arrays, size)
            self._rounded = self._layer(layer)
            self._done += 1
        return self._rounded.get(name)

    # ---- where it stands --------------------------------------------------------------------------------

    def _begin(self, layer: int) -> None:
        """At the layer that was saved last, or at the first."""
        loaded = self.memory.load()
        if loaded is None or loaded[0] > layer:
            self._texts = self._read()
            self._exact = [text.states for text in self._texts]
            self._states = [text.states for text in self._texts]
            return
        self._done, arrays = loaded
        numbers = range(sum(key.startswith("visible") for key in arrays))
        self._exact = [arrays[f"exact.{i}"] for i in numbers]
        self._states = [arrays[f"states.{i}"] for i in numbers]
        self._texts = [Text(self._exact[i], arrays[f"visible.{i}"]) for i in numbers]

    def _arrays(self) -> Arrays:
        found = {f"visible.{i}": text.visible for i, text in enumerate(self._texts)}
        found |= {f"exact.{i}": states for i, states in enumerate(self._exact)}
        return found | {f"states.{i}": states for i, states in enumerate(self._states)}

    # ---- one layer --------------------------------------------------------------------------------------

    def _layer(self, i: int) -> dict[str, Blocks]:
        """Round layer i and move on to what comes out of it."""
        probe = Probe(lambda g: build_layer(g, self.tensor, self.config, i), opset=21)
        chosen: dict[str, int] = {}
        for name in probe.products:
            block = block_of(len(probe.weights[f"{name}.weight"]), self.block)
            if block and not self.keep(name):
                chosen[name] = block
        steps = 2 * len(self._texts) + len(chosen)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self._progress(i + done / steps, self.config.layers)

        rounded = {name: blocks for name in chosen if (blocks := self.memory.known(name)) is not None}
        if len(rounded) == len(chosen):
            after = []
            for text, exact in zip(self._texts, self._exact, strict=True):
                after.append(probe(text.inputs(exact, self.config, i), taps=False)["states"][0])
                step()
        else:
            inputs, after = self._inputs(probe, chosen, i, step)
            rounded = {}
            # A place is forgotten after the last layer that multiplies it: at 13B they are 0.7 GB.
            last = {probe.products[name]: name for name in chosen}
            for name, block in chosen.items():
                place = probe.products[name]
                # The weight comes back, rounded, once all are: until then it is held in a quarter of its bytes.
                weight = probe.weights.pop(f"{name}.weight")
                rounded[name] = round_with_inputs(weight, block, inputs[place])
                if last[place] == name:
                    del inputs[place]
                step()
        self._exact = after
        for name, blocks in rounded.items():
            probe.weights[f"{name}.weight"] = blocks.dense()
        for number, (text, states) in enumerate(zip(self._texts, self._states, strict=True)):
            self._states[number] = probe(text.inputs(states, self.config, i), taps=False)["states"][0]
            step()
        return rounded

    def _inputs(
        self, probe: Probe, chosen: dict[str, int], i: int, step: Callable[[], None]
    ) -> tuple[dict[str, list[Inputs]], list[np.ndarray]]:
        """What the products of layer i multiply, summed over all texts, by place; and the original's next states."""
        places = {probe.products[name]: block for name, block in chosen.items()}
        sums: dict[str, list[Inputs]] = {}
        after = []
        for text, exact, states in zip(self._texts, self._exact, self._states, strict=True):
            original = probe(text.inputs(exact, self.config, i))
            after.append(original["states"][0])
            same = exact is states
            found = original if same else probe(text.inputs(states, self.config, i))
            for place, block in places.items():
                x, x0 = found[place][0], original[place][0]
                parts = sums.setdefault(place, [Inputs() for _ in spans(x.shape[1], block)])
                for part, span in zip(parts, spans(x.shape[1], block), strict=True):
                    part.add(x[:, span], x0[:, span])
            step()
        return sums, after
