"""A small byte-level BPE in GPT-2's files, and PSALM's prompts as the runtime builds them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from pixelrt.families.psalm_prompt import CONDITIONS, IMAGE, MASKS, PsalmPrompt
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pixelrt_export.families.psalm import MARKERS, PROMPT
from pixelrt_export.psalm_tokenizer import EOS, SEG, read_psalm_tokenizer
from pixelrt_export.tiny.psalm_prompts import BACKGROUND, NAMES, sentence
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.things import COLOURS, SHAPES

PAD = "[PAD]"


def corpus(scenes: int) -> Iterator[str]:
    """All that is ever encoded: texts of the templates, class names, sentences."""
    for template in PROMPT["templates"].values():
        for mark in (IMAGE, MASKS, CONDITIONS, *MARKERS.values()):
            template = template.replace(mark, "\0")
        for _ in range(20):
            yield from template.split("\0")
    for name in (*NAMES, *SHAPES, *COLOURS, *(f"{colour} shape" for colour in COLOURS), BACKGROUND):
        for _ in range(20):
            yield name
            yield f" the {name}."
    rng = random.Random(0)
    for seed in range(scenes):
        asked = sentence(scene(10**8 + seed).things, rng)
        assert asked is not None
        yield f" {asked.texts[0]}."


def write_tokenizer(folder: Path, scenes: int = 400, pieces: int = 640) -> None:
    """vocab.json, merges.txt, added_tokens.json and the two files of settings."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, min_frequency=8, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(scenes), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    vocab[EOS] = len(vocab)
    files = {
        "vocab.json": vocab,
        "added_tokens.json": {PAD: len(vocab), SEG: len(vocab) + 1},
        "special_tokens_map.json": dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOS)
        | {"pad_token": PAD},
        "tokenizer_config.json": {"add_prefix_space": False, "tokenizer_class": "CodeGenTokenizer"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def vocab_size(folder: Path) -> int:
    return read_psalm_tokenizer(folder, 1 << 20).size


def read_prompts(folder: Path, queries: int) -> PsalmPrompt:
    """The runtime's own prompts for a checkpoint's tokenizer; mask tokens are the ids after its vocabulary."""
    tokenizer = read_psalm_tokenizer(folder, 1 << 20)
    file = folder / "tokenizer.json"
    beside = folder / f"tokenizer.{os.getpid()}.new"  # the processes of a run all do this, perhaps at once
    beside.write_text(tokenizer.tokenizer.to_str(pretty=False), encoding="utf-8")
    os.replace(beside, file)
    return PsalmPrompt(file, PROMPT, {"mask_tokens": {"first": tokenizer.size, "count": queries}})
