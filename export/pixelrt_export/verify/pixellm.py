"""PixelLM's original, for `verify`: see `Original`. Letters as in `reference.pixellm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pixelrt.image import open_image
from pixelrt.prompt import PromptBuilder
from pixelrt.segmenter import Segmenter
from torch import Tensor

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.families.pixellm import TEMPLATE
from pixelrt_export.llama_tokenizer import read_llama_tokenizer, seg_token_ids
from pixelrt_export.reference.llama import Layer, LlamaSizes, RmsNorm, rotary
from pixelrt_export.reference.pixellm import STORED_BUT_COMPUTED, PixelLM, PixelLMSizes
from pixelrt_export.reference.preprocess import patch_validity, postprocess, preprocess
from pixelrt_export.verify.original import (
    Arrays,
    Encoded,
    Otherwise,
    Pass,
    Question,
    Reading,
    Said,
    Steps,
    wide,
)
from pixelrt_export.vision_tower import find_vision_tower, open_vision_tower

MAX_NEW_TOKENS = 96
ROWS_AT_ONCE = 8192  # of the head
SINGLE_STEPS = 4  # tokens of the answer that are read one at a time; the rest follows in one call


class PixelLMOriginal:
    family, typed = "pixellm", False

    def __init__(self, checkpoint: Checkpoint, vision_tower: Path | None) -> None:
        self.checkpoint, self.vision_tower = checkpoint, vision_tower
        self.clip = open_vision_tower(find_vision_tower(checkpoint.folder, checkpoint.config, vision_tower))
        self.sizes = LlamaSizes.read(checkpoint.config)
        self.all_sizes = PixelLMSizes.read(checkpoint.config, self.clip.config)
        self.tokenizer = read_llama_tokenizer(checkpoint.folder)
        self.seg = seg_token_ids(self.tokenizer.added_tokens, self.all_sizes.seg_tokens)
        # Longer prompts than any model takes: whether a bundle accepts one is not the question here.
        self.prompt = PromptBuilder(
            self.tokenizer.tokenizer, TEMPLATE, self.tokenizer.bos, self.tokenizer.unk, 1 << 20
        )

    @cached_property
    def net(self) -> PixelLM:
        """The reference without layers and with a vocabulary of one: both are read as they are needed."""
        config = self.checkpoint.config | {"num_hidden_layers": 0, "vocab_size": 1}
        row = np.zeros((1, self.sizes.hidden_size), np.float32)
        tensors = {"lm_head.weight": row, "model.embed_tokens.weight": row}
        for key in self.checkpoint.shapes():
            if key not in tensors and not key.startswith("model.layers."):
                tensors[key] = wide(self.checkpoint.tensor(key))
        clip = self.clip
        tower = {key: wide(clip.tensor(key)) for key in clip.shapes() if key.startswith("vision_model.")}
        return PixelLM.from_tensors(config, clip.config, tensors, tower)

    def release(self) -> None:
        self.__dict__.pop("net", None)

    # ---- encoder ----------------------------------------------------------------------------------------

    def picture(self, record: Question) -> dict[str, np.ndarray]:
        sizes = self.all_sizes
        pixels, fitted = preprocess(open_image(record.image), sizes.image_size)
        valid = patch_validity(*fitted, sizes.clip.patch_size, sizes.grid)
        return {"pixels": pixels[None], "patch_valid": np.concatenate([[True], valid])[None]}

    @torch.inference_mode()
    def vision(self, inputs: Arrays) -> tuple[str, np.ndarray, Steps]:
        tower = self.net.clip.vision_model
        start = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(inputs["pixels"])))
        valid = torch.from_numpy(inputs["patch_valid"])[:, None, None]
        deepest = max(self._taken())

        def step(layer: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
            def run(states: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    return layer(torch.from_numpy(states), valid).numpy()

            return run

        steps = ((f"clip.layers.{i}", step(layer)) for i, layer in enumerate(tower.encoder.layers[:deepest]))
        return "clip.embeddings", start.numpy(), steps

    def _taken(self) -> tuple[int, int]:
        """How many layers deep and shallow features have behind them."""
        sizes = self.all_sizes
        count = sizes.clip.num_hidden_layers + 1
        return sizes.deep_layer % count, sizes.shallow_layer % count

    @torch.inference_mode()
    def encoded(self, inputs: Arrays, places: Arrays) -> Encoded:
        net, model = self.net, self.net.model
        names = ["clip.embeddings" if n == 0 else f"clip.layers.{n - 1}" for n in self._taken()]
        deep, shallow = (torch.from_numpy(places[name])[:, 1:] for name in names)
        tokens = model.mm_projector(net.reduced(deep))
        grid = net.sizes.grid
        images = (model.out_mm_projector(x).mT.unflatten(-1, (grid, grid)) for x in (deep, shallow))
        neck = [model.image_feature_neck(image) for image in images]
        level0 = flat(neck[0]) + model.prompt_encoder.no_mask_embed.weight
        placed = level0 + flat(model.prompt_encoder.pe_layer(grid, grid))
        first = model.mask_decoder.transformer[0].layers[0]
        query = first.cross_attn_image_to_token.q_proj(placed)
        outputs = {
            "image_tokens": tokens,
            "level0": level0,
            "level0_key": first.cross_attn_token_to_image.k_proj(placed),
            "level0_value": first.cross_attn_token_to_image.v_proj(level0),
            # Scores are scaled where they are made; the bundle's query carries that factor.
            "level0_query": query * (query.shape[-1] // first.cross_attn_image_to_token.heads) ** -0.5,
            "level1": flat(model.mask_decoder.source(1, neck[1])),
        }
        return Encoded({name: value.numpy() for name, value in outputs.items()}, neck)

    # ---- language ---------------------------------------------------------------------------------------

    def listen(self, segmenter: Segmenter, record: Question) -> Said:
        answer = segmenter.segment(segmenter.encode(record.image), record.prompt, MAX_NEW_TOKENS)
        ids: list[int] = answer.token_ids  # type: ignore[attr-defined]
        return Said([int(i) for i in ids], [np.asarray(mask.mask) for mask in answer.masks])

    def ids(self, record: Question) -> list[int]:
        return self.prompt(record.prompt).input_ids()

    def read(self, record: Question, said: Said, image_tokens: np.ndarray) -> Reading:
        prompt, side = self.prompt(record.prompt), self.all_sizes
        _, fitted = preprocess(open_image(record.image), side.image_size)
        step = side.clip.patch_size * side.grid // side.token_grid
        head, tail = prompt.head, prompt.tail + said.words
        states = np.concatenate([self._embedded(head), image_tokens, self._embedded(tail)])
        visible = np.ones(len(states), np.bool_)
        visible[len(head) : len(head) + len(image_tokens)] = patch_validity(*fitted, step, side.token_grid)
        end = len(states) - len(said.words)
        places = np.arange(len(head) + len(image_tokens), len(states))
        codebook = [
            int(at) - 1 for at, token in zip(places, tail, strict=True) if at < end and token in self.seg
        ]
        rows = [
            *codebook,
            *range(end - 1, len(states) - 1),
        ]  # that predict codebook tokens of the prompt, the answer
        cuts = [0, end, *range(end + 1, min(end + SINGLE_STEPS, len(states))), len(states)]
        steps = [
            Pass(slice(a, b), {"logit_rows": np.array([r - a for r in rows if a <= r < b], np.int64)})
            for a, b in pairwise(cuts)
            if a < b
        ]
        return Reading(
            states,
            visible,
            Pass(slice(0, len(states)), {"logit_rows": np.array(rows, np.int64)}),
            tuple(steps),
        )

    def _embedded(self, ids: list[int]) -> np.ndarray:
        return wide(self.checkpoint.tensor("model.embed_tokens.weight")[np.asarray(ids, np.int64)])

    def layers(self) -> Iterator[tuple[str, Callable[[np.ndarray, Reading], np.ndarray]]]:
        for i in range(self.sizes.num_hidden_layers):
            with torch.device("meta"):
                layer = Layer(self.sizes)
            prefix = f"model.layers.{i}."
            state = {
                key.removeprefix(prefix): torch.from_numpy(wide(self.checkpoint.tensor(key)))
                for key in self.checkpoint.shapes()
                if key.startswith(prefix) and not key.endswith(STORED_BUT_COMPUTED)
            }
            layer.load_state_dict(state, assign=True)
            held = [layer]
            del layer, state

            def run(states: np.ndarray, reading: Reading, held: list[Layer] = held) -> np.ndarray:
                (layer,) = held
                count = len(states)
                positions = torch.arange(count)[None]
                angles = rotary(positions, self.sizes.head_dim, self.sizes.rope_theta)
                allowed = torch.ones(count, count, dtype=torch.bool).tril() & torch.from_numpy(
                    reading.visible
                )
                with torch.inference_mode():
                    out, _ = layer(torch.from_numpy(states)[None], angles, allowed[None, None], None)
                return out[0].numpy()

            yield f"language.layers.{i}", run
            held.clear()  # whoever asks for the next layer still has this `run`: 0.8 GB at 7B

    @torch.inference_mode()
    def head(self, states: np.ndarray, reading: Reading) -> dict[str, np.ndarray]:
        norm = RmsNorm(self.sizes.hidden_size, self.sizes.rms_norm_eps)
        norm.weight.data = torch.from_numpy(wide(self.checkpoint.tensor("model.norm.weight")))
        hidden = norm(torch.from_numpy(states[reading.whole.asked["logit_rows"]])).numpy()
        table = self.checkpoint.tensor("lm_head.weight")
        logits = [hidden @ wide(table[at : at + ROWS_AT_ONCE]).T for at in range(0, len(table), ROWS_AT_ONCE)]
        return {"logits": np.concatenate(logits, axis=1)[None], "hidden": hidden[None]}

    def idle(self, batch: int, count: int) -> dict[str, np.ndarray]:
        return {"logit_rows": np.array([count - 1], np.int64)}

    # ---- masks ------------------------------------------------------------------------------------------

    def targets(self, reading: Reading, said: Said, head: Arrays) -> dict[str, np.ndarray] | None:
        asked = head["hidden"][0]
        prompted = len(asked) - len(said.words)  # rows that predict the prompt's own codebook tokens
        rows = [*range(prompted)]
        rows += [prompted + i for i, token in enumerate(said.words) if token in self.seg]
        sizes = self.all_sizes
        if not rows or len(rows) % sizes.seg_tokens:
            return None
        shape = (-1, sizes.decoder.scales, sizes.seg_token_num, asked.shape[1])
        return {"seg_hidden": asked[rows].reshape(shape)}

    @torch.inference_mode()
    def decoded(self, targets: Arrays, encoded: Encoded) -> dict[str, np.ndarray]:
        fused = self.net.fuse(torch.from_numpy(targets["seg_hidden"]).flatten(0, 2))
        source = self.net.model.mask_decoder.source
        scales = [
            source(level, image).expand(len(fused), -1, -1, -1) for level, image in enumerate(encoded.kept)
        ]
        _, low_res = self.net.decode_masks(scales, fused)
        return {"low_res_masks": low_res[:, 0].numpy()}

    def masks(self, record: Question, said: Said, decoded: Arrays) -> list[np.ndarray]:
        image = open_image(record.image)
        _, fitted = preprocess(image, self.all_sizes.image_size)
        low_res = torch.from_numpy(np.asarray(decoded["low_res_masks"], np.float32))[:, None]
        return list((postprocess(low_res, fitted, image.shape[:2]) > 0).numpy())

    def agrees(
        self, record: Question, said: Said, head: Arrays, decoded: Arrays | None, drawn: Arrays | None
    ) -> bool:
        """Each token is the original's own choice after the ones before it: so it would have generated them."""
        return not otherwise(said, head)

    def otherwise(self, said: Said, head: Arrays) -> list[Otherwise]:
        return otherwise(said, head)


def otherwise(said: Said, head: Arrays) -> list[Otherwise]:
    """Rows of the logits that predict the prompt's own codebook tokens come first and decide nothing."""
    logits = head["logits"][0][len(head["logits"][0]) - len(said.words) :]
    found = []
    for number, (word, row) in enumerate(zip(said.words, logits, strict=True), start=1):
        if (choice := int(row.argmax())) != word:
            found.append(Otherwise(number, word, choice, float(row[choice] - row[word])))
    return found


def flat(image: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, D)"""
    return image.flatten(2).mT


def open_original(checkpoint: Checkpoint, vision_tower: Path | None) -> PixelLMOriginal:
    return PixelLMOriginal(checkpoint, vision_tower)
