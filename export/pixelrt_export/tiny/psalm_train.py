"""Train the tiny PSALM from nothing on drawn scenes, within a fixed time.

python -m pixelrt_export.tiny.psalm_train --out DIR [--minutes 85] [--device cpu] [--processes 2]
    [--smoke]

The schedule is tied to the time spent, so a run always anneals to its end: Swin and the pixel decoder with dense
heads first (20 %), then everything, the crutches fading out. DIR keeps state.pt (a second start resumes from it),
tokenizer/, log.jsonl, curves.png and, at the end, checkpoint/ in released layout.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pixelrt_export.families.psalm import FILL
from pixelrt_export.tiny.muon import Muon
from pixelrt_export.tiny.psalm_checkpoint import QUERIES, SIDE, new_model, save_checkpoint
from pixelrt_export.tiny.psalm_losses import Crutches, dense_loss, joint_loss
from pixelrt_export.tiny.psalm_rows import Packer
from pixelrt_export.tiny.psalm_tokenizer import read_prompts, vocab_size, write_tokenizer
from pixelrt_export.tiny.scene_cache import Batch, draw_batch, drawn_scenes
from pixelrt_export.tiny.train import LAST_AID, Run, parsed, start

TABLES = (
    "embed_tokens.weight",
    "query_embed.weight",
    "level_embed",
    "level_embed.weight",
    "seg_query",
    "bias_table",
)
SLOW = ("sampling_offsets", "attention_weights")  # a tenth of the rate, as Deformable DETR trains them
IDLE = ("lm_head.", "query_feat.", "SEG_query_embed.")
FIRST = ("net.model.vision_tower.", "net.pixel_decoder.", "crutches.dense")
SMOKE = {"minutes": 0.3, "scenes": 64, "films": 8, "images": 3, "sentences": 1, "processes": 1}


@dataclass(frozen=True)
class Settings:
    out: str
    cache: str
    minutes: float = 85.0
    scenes: int = 24000
    images: int = 12  # a step, over all processes; the first stage takes twice as many
    sentences: int = 2  # an image, besides a class list and some regions
    rate: float = 3e-3
    films: int = 2000  # clips to train on
    pairs: int = 2  # of the images of a step so many pairs are two frames of a clip
    seed: int = 0
    processes: int = 2
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"  # or "bfloat16", as in train.py
    port: int = 29512  # where the processes meet, on this machine
    after: str = ""  # state.pt of a finished run, as in train.py


class Trained(nn.Module):
    """All that training changes, under one roof for the optimisers and the state file."""

    def __init__(self, vocab: int):
        super().__init__()
        self.net = new_model(vocab)
        self.crutches = Crutches(self.net)

    def live(self, joint: bool) -> dict[str, nn.Parameter]:
        """Parameters that the stage trains: those without a use in the model stay as they were drawn."""
        return {
            name: p
            for name, p in self.named_parameters()
            if not any(part in name for part in IDLE) and (joint or name.startswith(FIRST))
        }


def optimisers(trained: Trained, rate: float) -> list[torch.optim.Optimizer]:
    live = trained.live(joint=True)
    slow = {name for name in live if any(part in name for part in SLOW)}
    fast = {
        name
        for name, p in live.items()
        if p.ndim > 1 and name not in slow and name.startswith("net.") and not name.endswith(TABLES)
    }
    rest = [p for name, p in live.items() if name not in slow | fast]
    groups = [{"params": rest}, {"params": [live[name] for name in sorted(slow)], "scale": 0.1}]
    return [
        Muon([live[name] for name in sorted(fast)], lr=rate),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class PsalmRun(Run):
    """One process of a training run."""

    encoder_share = 0.2  # until it tells shapes apart: in the joint stage it would learn that far more slowly

    def build(self) -> None:
        words = self.out / "tokenizer"
        self.trained = Trained(vocab_size(words)).to(self.s.device)
        self.optimisers = optimisers(self.trained, self.s.rate)
        config = self.trained.net.config
        self.packer = Packer(read_prompts(words, QUERIES), config.image_tokens, config.image_size)
        self.scenes = drawn_scenes(Path(self.s.cache), self.s.scenes, side=SIDE)
        self.films = drawn_scenes(Path(self.s.cache), 2 * self.s.films, side=SIDE, films=True)
        self.extra_state = {"tokenizer": {file.name: file.read_bytes() for file in words.iterdir()}}

    def write(self) -> None:
        save_checkpoint(self.trained.net, self.out / "tokenizer", self.out / "checkpoint")

    def batch(self, images: int, rng: np.random.Generator) -> Batch:
        """Scenes, and some pairs of frames of clips."""
        framed = 2 * min(max(1, self.s.pairs // self.s.processes), (images - 1) // 2)
        scenes = draw_batch(self.scenes, images - framed, rng, FILL)
        return scenes.joined(draw_batch(self.films, framed, rng, FILL, films=True)) if framed else scenes

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Batches are drawn from (seed, rank, step) alone, so a resumed run sees what it would have seen."""
        s, net, crutches = self.s, self.trained.net, self.trained.crutches
        rng = np.random.default_rng([s.seed, self.rank, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        images = s.images // s.processes
        if progress < self.encoder_share:
            batch = draw_batch(self.scenes, 2 * images, rng, FILL)
            loss = dense_loss(net, crutches, batch, net.encode(batch.pixels))
            return loss, {"dense": loss.detach()}
        batch = self.batch(images, rng)
        asked = self.packer.asked(batch, s.sentences, random.Random(int(rng.integers(2**31))))
        joint = (progress - self.encoder_share) / (1 - self.encoder_share)
        aid = LAST_AID if s.after else 1 - (1 - LAST_AID) * joint
        return joint_loss(net, crutches, self.packer, batch, self.packer.pack(asked), aid=aid)


def train(settings: Settings) -> None:
    words = Path(settings.out) / "tokenizer"
    if settings.after and not words.exists():
        words.mkdir(parents=True)
        for name, content in torch.load(settings.after, weights_only=False)["tokenizer"].items():
            (words / name).write_bytes(content)
    if not (words / "merges.txt").exists():
        write_tokenizer(words, min(400, settings.scenes))
    read_prompts(words, QUERIES)  # writes the runtime's form of it, before the processes read it
    drawn_scenes(Path(settings.cache), settings.scenes, side=SIDE)
    drawn_scenes(Path(settings.cache), 2 * settings.films, side=SIDE, films=True)
    start(PsalmRun, settings)


if __name__ == "__main__":
    train(parsed(Settings, __doc__, SMOKE))
