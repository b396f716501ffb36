"""PSALM's tokenizer as a `tokenizers.Tokenizer`: GPT-2's byte-level BPE from vocab.json, merges.txt and added tokens.

Phi's vocabulary is GPT-2's with runs of spaces added; PSALM adds `[PAD]` and `[SEG]`. An added token is taken out
of a text before anything else, the longest first; what lies between is split into words and merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pixelrt_export.checkpoint import file_inside, read_json

RETAKE = "take the file from the release"
EOS = "<|endoftext|>"
SEG = "[SEG]"


@dataclass(frozen=True)
class PsalmTokenizer:
    tokenizer: Tokenizer
    seg: int
    eos: int
    size: int  # ids are below it

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def read_psalm_tokenizer(folder: Path, vocab_size: int) -> PsalmTokenizer:
    """From a checkpoint folder; vocab_size: rows of its token table."""
    vocab = _ids(folder, "vocab.json")
    settings = (
        read_json(file_inside(folder, "tokenizer_config.json"))
        if (folder / "tokenizer_config.json").exists()
        else {}
    )
    if settings.get("add_prefix_space"):
        raise InputError(
            f"{folder / 'tokenizer_config.json'} says add_prefix_space, and PSALM was trained without: {RETAKE}"
        )
    tokenizer = Tokenizer(_bpe(folder, vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()

    added = _ids(folder, "added_tokens.json") if (folder / "added_tokens.json").exists() else {}
    ids = vocab | added
    missing = [text for text in (SEG, EOS) if text not in ids]
    if missing:
        raise InputError(
            f"{folder}: neither vocab.json nor added_tokens.json holds {', '.join(missing)}: {RETAKE}"
        )
    flags = _flags(settings)
    for text, number in sorted((added | {EOS: ids[EOS]}).items(), key=lambda item: item[1]):
        _add(tokenizer, text, flags.get(text, {}))
        if tokenizer.token_to_id(text) != number:
            raise InputError(
                f"{folder / 'added_tokens.json'} gives {text!r} id {number}, wanted {tokenizer.token_to_id(text)}, the "
                f"next free one: {RETAKE}"
            )
    size = max(ids.values()) + 1
    if size > vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {size} ids, its token table {vocab_size} rows: {RETAKE}"
        )
    return PsalmTokenizer(tokenizer, ids[SEG], ids[EOS], size)


def _bpe(folder: Path, vocab: dict[str, int]) -> models.BPE:
    path = file_inside(folder, "merges.txt")
    merges = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise InputError(
                f"{path}, line {number}: {line!r} does not join two entries of vocab.json: {RETAKE}"
            )
        merges.append((pair[0], pair[1]))
    lost = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in vocab]
    if lost:
        raise InputError(f"{folder / 'vocab.json'} lacks {len(lost)} of the 256 bytes: {RETAKE}")
    return models.BPE(vocab=vocab, merges=merges)


def _ids(folder: Path, name: str) -> dict[str, int]:
    ids = read_json(file_inside(folder, name))
    if (
        not all(type(i) is int and i >= 0 for i in ids.values())
        or "" in ids
        or len({*ids.values()}) < len(ids)
    ):
        raise InputError(f"{folder / name} must map texts to whole numbers, each once: {RETAKE}")
    return ids


def _flags(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Text -> what tokenizer_config.json says about it, where it says anything."""
    described = settings.get("added_tokens_decoder") or {}
    if not isinstance(described, dict):
        return {}
    return {
        entry["content"]: entry
        for entry in described.values()
        if isinstance(entry, dict) and "content" in entry
    }


def _add(tokenizer: Tokenizer, text: str, flags: Mapping[str, Any]) -> None:
    special = bool(flags.get("special", text == EOS))
    token = AddedToken(
        text,
        lstrip=bool(flags.get("lstrip")),
        rstrip=bool(flags.get("rstrip")),
        single_word=bool(flags.get("single_word")),
        normalized=False,  # nothing is normalised
        special=special,
    )
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
