"""PSALM's original, for `verify`: see `Original`. Questions are typed queries. Letters as in `reference.psalm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pixelrt.errors import InputError
from pixelrt.families.psalm_prompt import REGION, PsalmPrompt, Tail, tail_of
from pixelrt.families.psalm_regions import network_mask, region_masks
from pixelrt.image import open_image
from pixelrt.queries import Classes, Regions
from pixelrt.segmenter import Segmenter
from torch import Tensor, nn

from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.families.psalm import CONDITIONS, PADDING, PROMPT
from pixelrt_export.psalm_config import PsalmConfig
from pixelrt_export.psalm_tokenizer import read_psalm_tokenizer
from pixelrt_export.reference.llama import rotary
from pixelrt_export.reference.phi import Layer
from pixelrt_export.reference.preprocess import MEAN, STD, fit
from pixelrt_export.reference.psalm import Psalm
from pixelrt_export.reference.psalm_masks import Drawn, Planes, draw, region_vectors
from pixelrt_export.verify.comparison import iou
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

IMAGE = -200  # in ids: the picture stands here
HALF = 0.5  # IoU above which two sets of segments that do not overlap have one partner each at most


class PsalmOriginal:
    family, typed = "psalm", True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.vision_tower = checkpoint, None
        self.config = PsalmConfig.read(checkpoint.config, checkpoint.shapes())
        tokenizer = read_psalm_tokenizer(checkpoint.folder, self.config.language.vocab)
        tokens = {"mask_tokens": {"first": self.config.language.vocab, "count": self.config.queries}}
        self.prompt = PsalmPrompt(tokenizer.tokenizer, PROMPT, tokens)

    @cached_property
    def net(self) -> Psalm:
        """The reference with one layer, unused, and a vocabulary of one: both are read as they are needed."""
        config = self.checkpoint.config | {"num_hidden_layers": 1, "vocab_size": 1}
        row = np.zeros((1, self.config.language.hidden), np.float32)
        tensors = {"lm_head.weight": row, "model.embed_tokens.weight": row}
        for key in self.checkpoint.shapes():
            later = key.startswith("model.layers.") and not key.startswith("model.layers.0.")
            if key not in tensors and not later:
                tensors[key] = wide(self.checkpoint.tensor(key))
        return Psalm.from_tensors(config, tensors)

    def release(self) -> None:
        self.__dict__.pop("net", None)

    # ---- encoder ----------------------------------------------------------------------------------------

    def picture(self, record: Question) -> dict[str, np.ndarray]:
        side = self.config.image_size
        resized = fit(open_image(record.image), side)
        square = np.full((side, side, 3), PADDING, np.float32)  # grey before it is normalised
        square[: resized.shape[0], : resized.shape[1]] = resized
        return {"pixels": ((square - MEAN) / STD).transpose(2, 0, 1)[None].copy()}

    @torch.inference_mode()
    def vision(self, inputs: Arrays) -> tuple[str, np.ndarray, Steps]:
        tower = self.net.model.vision_tower

        def step(before: nn.Module | None, block: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
            def run(states: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    x = torch.from_numpy(states)
                    return block(x if before is None else before(x)).numpy()

            return run

        def steps() -> Steps:
            merge = None
            for i, layer in enumerate(tower.layers):
                for j, block in enumerate(layer.blocks):
                    yield f"swin.layers.{i}.blocks.{j}", step(merge, block)
                    merge = None
                merge = layer.downsample

        return "swin.embeddings", tower.patch_embed(torch.from_numpy(inputs["pixels"])).numpy(), steps()

    @torch.inference_mode()
    def encoded(self, inputs: Arrays, places: Arrays) -> Encoded:
        net, tower = self.net, self.net.model.vision_tower
        stages = []
        for i, layer in enumerate(tower.layers):
            x = torch.from_numpy(places[f"swin.layers.{i}.blocks.{len(layer.blocks) - 1}"])
            stages.append(getattr(tower, f"norm{i}")(x).permute(0, 3, 1, 2))
        features, levels = net.pixel_decoder(stages)
        keys = net.predictor.keys(levels)
        outputs: dict[str, Tensor] = {
            "image_tokens": net.model.mm_projector(stages[-1]),
            "mask_features": features,
        }
        for level, side in enumerate(self.config.levels):
            small = F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
            outputs[f"mask_features.{level}"] = small.flatten(2)
        for i, (key, value) in enumerate(keys):
            outputs |= {f"key.{i}": key.mT, f"value.{i}": value}
        return Encoded({name: x.contiguous().numpy() for name, x in outputs.items()}, (features, keys))

    # ---- language ---------------------------------------------------------------------------------------

    def listen(self, segmenter: Segmenter, record: Question) -> Said:
        assert record.query is not None
        answer = segmenter.segment(segmenter.encode(record.image), record.query)
        return Said([], [np.asarray(mask.mask) for mask in answer.masks])

    def ids(self, record: Question) -> list[int]:
        tail = tail_of(self.prompt, record.query)
        return [*self.prompt.head, IMAGE, *(int(token) for token in tail.ids)]

    def read(self, record: Question, said: Said, image_tokens: np.ndarray) -> Reading:
        assert record.query is not None
        tail = tail_of(self.prompt, record.query)
        head = self._embedded(np.asarray(self.prompt.head))
        states = np.concatenate([head, image_tokens, self._tail_states(tail, record, image_tokens)])
        start, count = len(head) + len(image_tokens), len(states)
        kind = np.array([CONDITIONS[tail.kind]], np.int64)
        pool = tail.pool(slice(0, len(tail)))
        before = {"pool": np.zeros((1, 0, start), np.float32), "query_rows": np.zeros(0, np.int64)}
        behind = {"pool": pool[None], "query_rows": tail.mask_rows}
        whole = {"pool": np.pad(pool, ((0, 0), (start, 0)))[None], "query_rows": tail.mask_rows + start}
        asked = [{"condition_kind": kind, **rows} for rows in (before, behind, whole)]
        return Reading(
            states,
            np.ones(count, np.bool_),
            Pass(slice(0, count), asked[2]),
            (Pass(slice(0, start), asked[0]), Pass(slice(start, count), asked[1])),
        )

    def _tail_states(self, tail: Tail, record: Question, image_tokens: np.ndarray) -> np.ndarray:
        rows = self._embedded(np.where(tail.ids == REGION, 0, tail.ids))
        if isinstance(record.query, Regions):
            image, side = open_image(record.image), self.config.image_size
            marked = region_masks(record.query, image.shape[:2])
            fitted = fit(image, side).shape[:2]
            seen = [torch.from_numpy(network_mask(mask, fitted, "region")) for mask in marked]
            rows[tail.ids == REGION] = region_vectors(
                torch.from_numpy(wide(image_tokens)), seen, side
            ).numpy()
        return rows

    def _embedded(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the token table; behind it lie the mask tokens."""
        vocab, rows = (
            self.config.language.vocab,
            np.empty((len(ids), self.config.language.hidden), np.float32),
        )
        mask = ids >= vocab
        rows[~mask] = self.checkpoint.tensor("model.embed_tokens.weight")[ids[~mask]]
        rows[mask] = self.checkpoint.tensor("seg_query")[ids[mask] - vocab]
        return rows

    def layers(self) -> Iterator[tuple[str, Callable[[np.ndarray, Reading], np.ndarray]]]:
        config = self.config.language
        for i in range(config.layers):
            with torch.device("meta"):
                layer = Layer(config)
            prefix = f"model.layers.{i}."
            state = {
                name: torch.from_numpy(wide(self.checkpoint.tensor(prefix + name)))
                for name in layer.state_dict()
            }
            layer.load_state_dict(state, assign=True)

            def run(states: np.ndarray, reading: Reading, layer: Layer = layer) -> np.ndarray:
                count = len(states)
                angles = rotary(torch.arange(count)[None], config.rotary_dims, config.rope_theta)
                allowed = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
                with torch.inference_mode():
                    return layer(torch.from_numpy(states)[None], angles, allowed)[0].numpy()

            yield f"language.layers.{i}", run

    @torch.inference_mode()
    def head(self, states: np.ndarray, reading: Reading) -> dict[str, np.ndarray]:
        asked = {name: torch.from_numpy(np.asarray(value)) for name, value in reading.whole.asked.items()}
        x = self.net.model.final_layernorm(torch.from_numpy(states))[None]
        conditions = self.net.conditions(asked["pool"] @ x, asked["condition_kind"])
        queries = self.net.seg_query_projector(x[:, asked["query_rows"]])
        return {"conditions": conditions.numpy(), "queries": queries.numpy()}

    def idle(self, batch: int, count: int) -> dict[str, np.ndarray]:
        return {
            "pool": np.zeros((batch, 0, count), np.float32),
            "condition_kind": np.zeros(batch, np.int64),
            "query_rows": np.zeros(0, np.int64),
        }

    # ---- masks ------------------------------------------------------------------------------------------

    def targets(self, reading: Reading, said: Said, head: Arrays) -> dict[str, np.ndarray] | None:
        return {**head, "condition_kind": reading.whole.asked["condition_kind"]}

    @torch.inference_mode()
    def decoded(self, targets: Arrays, encoded: Encoded) -> dict[str, np.ndarray]:
        features, keys = encoded.kept
        queries, conditions, kind = (
            torch.from_numpy(np.asarray(targets[name]))
            for name in ("queries", "conditions", "condition_kind")
        )
        last = self.net.predictor(queries, keys, features, torch.zeros(1, dtype=torch.long))[-1]
        scores = self.net.predictor.scores(last.states, conditions, kind)
        return {"mask_logits": last.masks.numpy(), "scores": scores.numpy()}

    def masks(self, record: Question, said: Said, decoded: Arrays) -> list[np.ndarray]:
        """Masks of classes have no order that both sides share: each mask of the bundle gets the one that covers it
        best, or an empty one; those that are left come last."""
        drawn = [mask for _, mask in self._drawn(record, decoded)]
        if not isinstance(record.query, Classes):
            return drawn
        paired = []
        for mask in said.masks:
            if drawn and np.array_equal(drawn[0], mask):
                paired.append(drawn.pop(0))
                continue
            best = max(range(len(drawn)), key=lambda k: iou(mask, drawn[k]), default=None)
            good = best is not None and iou(mask, drawn[best]) > HALF
            paired.append(drawn.pop(best) if good and best is not None else np.zeros_like(mask))
        return paired + drawn

    @torch.inference_mode()
    def _drawn(self, record: Question, decoded: Arrays) -> list[Drawn]:
        """What was decided (a query; in answers about classes, the class) and its mask."""
        image = open_image(record.image)
        fitted = fit(image, self.config.image_size).shape[:2]
        low, scores = (torch.from_numpy(wide(decoded[n]))[0] for n in ("mask_logits", "scores"))
        planes = Planes(low, (fitted[0], fitted[1]), (image.shape[0], image.shape[1]))
        return draw(record.query, scores, planes)

    def agrees(
        self, record: Question, said: Said, head: Arrays, decoded: Arrays | None, drawn: Arrays | None
    ) -> bool:
        """The same mask queries fit best; of classes, the same ones are found."""
        if decoded is None or drawn is None:
            return False
        own, other = ([chosen for chosen, _ in self._drawn(record, x)] for x in (decoded, drawn))
        return sorted(own) == sorted(other) if isinstance(record.query, Classes) else own == other

    def otherwise(self, said: Said, head: Arrays) -> list[Otherwise]:
        return []


def open_original(checkpoint: Checkpoint, vision_tower: Path | None) -> PsalmOriginal:
    if vision_tower is not None:
        raise InputError("PSALM holds its own vision tower: leave out --vision-tower.")
    return PsalmOriginal(checkpoint)
