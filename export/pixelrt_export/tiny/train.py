"""Train the tiny PixelLM from nothing on drawn scenes, within a fixed time.

python -m pixelrt_export.tiny.train --out DIR [--minutes 150] [--device cpu] [--processes 2]
    [--smoke] [--after FIRST/state.pt]

The schedule is tied to the time spent, so a run always anneals to its end: the encoder with dense heads first
(12 %), then everything; the oracle prompt fades out by 40 % of the second stage, the crutches by its end. `--after`
goes on from a finished run at a new rate: no first stage, no oracle, more of the questions that were left hard. DIR
keeps state.pt (a second start resumes from it), log.jsonl, curves.png and, at the end, checkpoint/ in released
layout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from pixelrt_export.tiny.checkpoint import save_checkpoint
from pixelrt_export.tiny.curves import write_curves
from pixelrt_export.tiny.losses import encoder_loss, joint_loss
from pixelrt_export.tiny.optimisation import (
    ENCODER_SHARE,
    Trained,
    arithmetic,
    averaged,
    learning_rate,
    optimisers,
)
from pixelrt_export.tiny.questions import MIX, MIX_AFTER
from pixelrt_export.tiny.rows import Packer
from pixelrt_export.tiny.scene_cache import draw_batch, drawn_scenes
from pixelrt_export.tiny.tokenizer import Tokenizer, train_model

ORACLE_UNTIL = 0.40  # of the joint stage
LAST_AID = 0.1  # weight of the crutches at the end of a run, and in one that goes on from it
SAVE_EVERY_S = 120
CHOICES = {"dtype": ["bfloat16", "float32"]}


@dataclass(frozen=True)
class Settings:
    out: str
    cache: str
    minutes: float = 150.0
    scenes: int = 50000
    images: int = 16  # a step, over all processes; the encoder stage takes twice as many
    questions: int = 4  # an image, besides the caption
    most_masks: int = 40  # a step, over all processes
    rate: float = 3e-3
    seed: int = 0
    processes: int = 2
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"  # or "bfloat16" of the products: a fifth off a step where the CPU has AVX-512 BF16
    port: int = 29511  # where the processes meet, on this machine
    after: str = ""  # state.pt of a finished run, whose weights, crutches and momenta this one starts from


class Run:
    """One process of a training run. Another model's run overrides `build`, `loss` and `write`."""

    encoder_share = ENCODER_SHARE  # of the time, in which the encoder is trained alone

    def __init__(self, settings: Settings, rank: int):
        self.s, self.rank, self.out = settings, rank, Path(settings.out)
        torch.manual_seed(settings.seed)
        if settings.after:
            self.encoder_share = 0.0
        self.build()
        self.step, self.spent_s, self.started = 0, 0.0, time.monotonic()  # spent: before this start
        if (self.out / "state.pt").exists():
            self.resume(self.out / "state.pt")
        elif settings.after:
            self.resume(Path(settings.after))  # counts its steps on: other scenes are drawn than its first
            self.spent_s = 0.0

    def build(self) -> None:
        """What is trained (`net` and `crutches`), its optimisers, its data."""
        self.tokenizer = Tokenizer((self.out / "tokenizer.model").read_bytes())
        self.trained = Trained(self.tokenizer).to(self.s.device)
        self.optimisers = optimisers(self.trained, self.s.rate)
        mix = MIX_AFTER if self.s.after else MIX
        self.packer = Packer(self.tokenizer, self.trained.net.sizes.token_grid**2, mix)
        self.scenes = drawn_scenes(Path(self.s.cache), self.s.scenes)
        self.extra_state = {"tokenizer": self.tokenizer.pieces.serialized_model_proto()}

    def write(self) -> None:
        save_checkpoint(self.trained.net, self.tokenizer, self.out / "checkpoint")

    def state(self) -> dict:
        return {
            "net": self.trained.net.state_dict(),
            "crutches": self.trained.crutches.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "spent_s": self.spent_s + time.monotonic() - self.started,
            **self.extra_state,
        }

    def resume(self, file: Path) -> None:
        state = torch.load(file, weights_only=False, map_location="cpu")
        self.trained.net.load_state_dict(state["net"])
        self.trained.crutches.load_state_dict(state["crutches"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent_s = state["step"], state["spent_s"]

    def save(self) -> None:
        torch.save(self.state(), self.out / "state.new")
        os.replace(self.out / "state.new", self.out / "state.pt")
        if (self.out / "log.jsonl").exists():
            write_curves(self.out / "log.jsonl", self.out / "curves.png")

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Batches are drawn from (seed, rank, step) alone, so a resumed run sees what it would have seen."""
        s, net, crutches = self.s, self.trained.net, self.trained.crutches
        rng = np.random.default_rng([s.seed, self.rank, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        images = s.images // s.processes
        if progress < self.encoder_share:
            batch = draw_batch(self.scenes, 2 * images, rng)
            features = net.encode(batch.pixels, batch.fitted)
            loss = encoder_loss(net, crutches, batch, features.deep, features.shallow)
            return loss, {"dense": loss.detach()}
        joint = (progress - self.encoder_share) / (1 - self.encoder_share)
        return joint_loss(
            net,
            crutches,
            self.packer,
            draw_batch(self.scenes, images, rng),
            random.Random(int(rng.integers(2**31))),
            questions=s.questions,
            most_masks=s.most_masks // s.processes,
            oracle=0.0 if s.after else max(0.0, 1 - joint / ORACLE_UNTIL),
            aid=LAST_AID if s.after else 1 - (1 - LAST_AID) * joint,
        )

    def advance(self, progress: float) -> dict[str, float]:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = (
                    self.s.rate * learning_rate(progress, self.encoder_share) * group.get("scale", 1.0)
                )
        with arithmetic(self.s.device, self.s.dtype):
            loss, figures = self.loss(progress)
        loss.backward()
        params = list(self.trained.live(joint=progress >= self.encoder_share).values())
        mean = averaged(params, torch.stack([loss.detach(), *figures.values()]), self.s.processes)
        norm = nn.utils.clip_grad_norm_(params, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        return dict(zip(["loss", *figures, "grad_norm"], [*mean.tolist(), float(norm)], strict=True))

    def agreed_progress(self) -> float:
        """Share of the time spent, the same in all processes (they must choose the same stage and rate)."""
        now_s = self.spent_s + time.monotonic() - self.started
        spent = torch.tensor([now_s], dtype=torch.float64, device="cpu")
        if self.s.processes > 1:
            torch.distributed.broadcast(spent, 0)
        return float(spent) / (60 * self.s.minutes)

    def train(self) -> None:
        self.started = saved = time.monotonic()
        recent: dict[str, float] = {}
        while (progress := self.agreed_progress()) < 1:
            figures = self.advance(progress)
            recent = {k: 0.95 * recent.get(k, v) + 0.05 * v for k, v in figures.items()}
            if self.rank == 0 and self.step % 20 == 0:
                self.report(progress, recent)
            if self.rank == 0 and time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        if self.rank == 0:
            if recent and self.step % 20:
                self.report(progress, recent)
            self.save()
            self.write()
            print(f"done: {self.step} steps, {self.out / 'checkpoint'}", flush=True)

    def report(self, progress: float, figures: dict[str, float]) -> None:
        line = {
            "step": self.step,
            "progress": round(progress, 4),
            "rate": self.s.rate * learning_rate(progress, self.encoder_share),
            **{name: round(value, 4) for name, value in figures.items()},
        }
        with open(self.out / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        left = (1 - progress) * self.s.minutes
        print(
            f"{progress:6.1%} step {self.step} ETA {left:.1f} min  "
            + " ".join(f"{name} {value:.3f}" for name, value in figures.items()),
            flush=True,
        )


def process(rank: int, run: type[Run], settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.set_default_device(settings.device)
    if settings.processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{settings.port}", rank=rank, world_size=settings.processes
        )
    run(settings, rank).train()
    if settings.processes > 1:
        torch.distributed.destroy_process_group()


def start(run: type[Run], settings: Settings) -> None:
    """All processes of a run, this one among them where it is the only one."""
    if settings.processes == 1:
        process(0, run, settings)
    else:
        torch.multiprocessing.spawn(process, (run, settings), nprocs=settings.processes)


def train(settings: Settings) -> None:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    model = out / "tokenizer.model"
    if settings.after and not model.exists():
        model.write_bytes(torch.load(settings.after, weights_only=False, map_location="cpu")["tokenizer"])
    if not model.exists():
        model.write_bytes(train_model(min(1500, settings.scenes)))
    drawn_scenes(Path(settings.cache), settings.scenes)
    start(Run, settings)


def parsed(kind: type[Settings], about: str, smoke: dict) -> Settings:
    """Settings from the command line. smoke: what `--smoke` sets."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the state, the log and the checkpoint")
    parser.add_argument("--cache", help="folder for the drawn scenes (default: OUT/scenes)")
    parser.add_argument(
        "--smoke", action="store_true", help="under 60 s: few scenes, small steps, not a useful model"
    )
    for field in fields(kind)[2:]:
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(
            flag,
            type=type(field.default),
            default=field.default,
            choices=CHOICES.get(field.name),
        )
    given = vars(parser.parse_args())
    if given["device"] != "cpu":
        given["processes"] = 1  # the processes split the work between CPU cores
    given["cache"] = given["cache"] or str(Path(given["out"]) / "scenes")
    if given.pop("smoke"):
        given |= smoke
    return kind(**given)


SMOKE = {"minutes": 0.3, "scenes": 64, "images": 2, "questions": 2, "most_masks": 4, "processes": 1}

if __name__ == "__main__":
    train(parsed(Settings, __doc__, SMOKE))
