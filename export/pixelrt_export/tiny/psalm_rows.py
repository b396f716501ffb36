"""Several prompts about one image packed behind one prefix: they share it and do not see each other.

Letters: B images, N prompts (all images'), T packed positions, Q mask queries, K conditions of the longest list,
M regions, P image tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from pixelrt.families.psalm_prompt import REGION, PsalmPrompt, Tail
from pixelrt.families.psalm_regions import pooling_weights
from torch import Tensor

from pixelrt_export.reference.psalm import Psalm
from pixelrt_export.tiny.psalm_prompts import KINDS, Asked, classes, regions, sentence
from pixelrt_export.tiny.scene_cache import MOST, Batch


@dataclass
class Rows:
    ids: Tensor  # (B, T) of the token table with the mask tokens behind it; 0 where a region stands
    segment: Tensor  # (B, T): 1, 2.. the prompt of a position, -1 padding
    position: Tensor  # (B, T): as if the prompt stood alone behind the prefix
    image: Tensor  # (N,) 0..B-1
    kind: Tensor  # (N,) index of KINDS
    pool: Tensor  # (N, K, T): row k averages the tokens of condition k
    valid: Tensor  # (N, K) bool: conditions that are there
    queries: Tensor  # (N, Q) positions of the mask tokens
    targets: Tensor  # (N, MOST) label of each thing that is asked for, 0 where there are fewer
    wanted: Tensor  # (N, MOST, K) 1 where a target answers a condition
    region_at: Tensor  # (M, 2) image, position
    region_of: Tensor  # (M,) image whose tokens it averages
    region_weights: Tensor  # (M, P) of the image tokens


class Packer:
    def __init__(self, prompts: PsalmPrompt, image_tokens: int, square: int):
        """square: px a side of the network's input."""
        self.prompts, self.image_tokens, self.square = prompts, image_tokens, square
        self.prefix = len(prompts.head) + image_tokens

    def asked(self, batch: Batch, sentences: int, rng: random.Random) -> list[list[Asked]]:
        """Of each image: a class list, `sentences` sentences, some regions; of a later frame, also of the earlier."""
        labels, out = batch.labels.cpu().numpy(), []
        for b, things in enumerate(batch.things):
            height, width = batch.fitted[b]
            spoken = [sentence(things, rng) for _ in range(sentences)]
            marked = regions(things, labels[b, :height, :width], rng)
            out.append([classes(things, rng), *(s for s in spoken if s), marked])
            earlier = batch.before[b]
            here = {t.label for t in things}
            still = [t for t in batch.things[earlier] if t.label in here] if earlier is not None else []
            if still:
                marked = regions(still, labels[earlier, :height, :width], rng)
                out[-1].append(replace(marked, marked_in=earlier))
        return out

    def tail(self, asked: Asked) -> Tail:
        if asked.kind == "region":
            return self.prompts.regions(len(asked.regions))
        return (self.prompts.classes if asked.kind == "class" else self.prompts.sentence)(asked.texts)

    def pack(self, asked: list[list[Asked]]) -> Rows:
        tails = [[self.tail(a) for a in row] for row in asked]
        flat = [a for row in asked for a in row]
        length = max(sum(map(len, row)) for row in tails)
        most = max(max(t.condition.max() for t in row) for row in tails)
        count = len(flat)
        ids = np.zeros((len(asked), length), np.int64)
        segment, position = np.full_like(ids, -1), np.zeros_like(ids)
        pool = np.zeros((count, most, length), np.float32)
        wanted = np.zeros((count, MOST, most), np.float32)
        targets, valid = np.zeros((count, MOST), np.int64), np.zeros((count, most), bool)
        image, queries, region_at, region_of, weights = [], [], [], [], []
        for n, (b, number, start, one, tail) in enumerate(self._placed(asked, tails)):
            here, end = np.s_[b, start : start + len(tail)], start + len(tail)
            ids[here], segment[here] = np.where(tail.ids == REGION, 0, tail.ids), number
            position[here] = self.prefix + np.arange(len(tail))
            pooled = tail.pool(slice(0, len(tail)))
            pool[n, : len(pooled), start:end], valid[n, : len(pooled)] = pooled, True
            image.append(b)
            queries.append(start + tail.mask_rows)
            for t, (label, numbers) in enumerate(one.answers.items()):
                targets[n, t] = label
                wanted[n, t, list(numbers)] = 1
            region_at += [(b, start + at) for at in np.flatnonzero(tail.ids == REGION)]
            region_of += [b if one.marked_in is None else one.marked_in] * len(one.regions)
            weights += [pooling_weights(mark, self.square, self.image_tokens) for mark in one.regions]
        table = np.asarray(weights, np.float32).reshape(-1, self.image_tokens)
        arrays = (ids, segment, position, image, [KINDS.index(a.kind) for a in flat], pool, valid)
        tensors = (torch.tensor(np.asarray(x)) for x in (*arrays, np.stack(queries), targets, wanted))
        places = np.asarray(region_at, np.int64).reshape(-1, 2)
        sources = torch.tensor(np.asarray(region_of, np.int64))
        return Rows(
            *tensors,
            region_at=torch.tensor(places),
            region_of=sources,
            region_weights=torch.tensor(table),
        )

    @staticmethod
    def _placed(
        asked: list[list[Asked]], tails: list[list[Tail]]
    ) -> Iterator[tuple[int, int, int, Asked, Tail]]:
        """Image, number of the prompt, where it starts, the prompt."""
        for b, row in enumerate(asked):
            start = 0
            for number, (one, tail) in enumerate(zip(row, tails[b], strict=True), start=1):
                yield b, number, start, one, tail
                start += len(tail)

    def allowed(self, rows: Rows) -> Tensor:
        """(B, 1, L, L) bool: causal, the prefix and its own prompt."""
        length = self.prefix + rows.ids.shape[1]
        segment = F.pad(rows.segment, (self.prefix, 0))
        shared = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        return (shared & torch.ones(length, length, dtype=torch.bool).tril())[:, None]

    def read(self, net: Psalm, rows: Rows, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, P, H) of the images -> queries (N, Q, D), conditions (N, K, D)"""
        table = torch.cat([net.model.embed_tokens.weight, net.seg_query])
        embeds = F.embedding(rows.ids, table)
        at, weights = rows.region_at, rows.region_weights
        vectors = (weights[:, None] @ tokens[rows.region_of])[:, 0]
        embeds = embeds.index_put((at[:, 0], at[:, 1]), vectors.to(embeds.dtype))
        head = table[torch.tensor(self.prompts.head)].expand(len(embeds), -1, -1)
        before = torch.arange(self.prefix).expand(len(embeds), -1)
        states = net.hidden(
            torch.cat([head, tokens, embeds], dim=1),
            torch.cat([before, rows.position], dim=1),
            self.allowed(rows),
        )[:, self.prefix :]
        pooled = rows.pool @ states[rows.image]
        return net.seg_query_projector(states[rows.image[:, None], rows.queries]), net.conditions(
            pooled, rows.kind
        )
