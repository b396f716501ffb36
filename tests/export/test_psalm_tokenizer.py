"""GPT-2's byte-level BPE from its own files, against the algorithm written out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from pixelrt_export.psalm_tokenizer import PsalmTokenizer, read_psalm_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

regex = pytest.importorskip("regex", reason="the reference splits words with it")

WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
TEXTS = (
    "This is an image ",
    ", Please do Panoptic Segmentation.\nThis is all the candidate categories: ",
    " [/INST] \n[SEG]",
    "\nThis is all regions:  ",
    "traffic light[SEG]",
    " the blue disc on the right. round thing.[SEG]",
    "a   b    c\t\td\n\n  e ",
    "naïve café — 東京 🙂 it's 12 o'clock, they'll",
    "<|endoftext|>[PAD]<|endoftext|> [SEG][SEG",
    " ",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 bytes, a few merges and `<|endoftext|>` in the vocabulary; runs of spaces and tabs added after it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    trained.train_from_iterator(TEXTS * 3, trainer)
    trained.model.save(str(folder))  # vocab.json and merges.txt
    vocab = json.loads((folder / "vocab.json").read_text())
    added = [*(" " * n for n in range(31, 1, -1)), *("\t" * n for n in range(9, 1, -1)), "[PAD]", "[SEG]"]
    version, merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n", 1)
    # Before all others, an n and the space after it: never within one word, so it must never happen.
    (folder / "merges.txt").write_text(f"{version}\nn Ġ\n{merges}", encoding="utf-8")
    vocab |= {"nĠ": len(vocab), "<|endoftext|>": len(vocab) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "added_tokens.json").write_text(
        json.dumps({text: len(vocab) + i for i, text in enumerate(added)})
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PsalmTokenizer:
    return read_psalm_tokenizer(folder, 1000)


def reference(folder: Path, text: str) -> list[int]:
    """Added tokens out first, the longest at each place; then words, bytes as letters, merges by rank."""
    vocab, added = (json.loads((folder / name).read_text()) for name in ("vocab.json", "added_tokens.json"))
    added["<|endoftext|>"] = vocab["<|endoftext|>"]
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    ranks = {tuple(line.split(" ")): i for i, line in enumerate(lines) if line}
    either = "|".join(regex.escape(token) for token in sorted(added, key=len, reverse=True))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    ids = []
    for part in regex.split(f"({either})", text):
        if part in added:
            ids.append(added[part])
            continue
        for word in WORDS.findall(part):
            pieces = [letters[byte] for byte in word.encode()]
            while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
                best, merged, i = min(pairs, key=ranks.__getitem__), [], 0
                while i < len(pieces):
                    step = 2 if tuple(pieces[i : i + 2]) == best else 1
                    merged.append("".join(pieces[i : i + step]))
                    i += step
                pieces = merged
            ids += [vocab[piece] for piece in pieces]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_ids(folder: Path, tokenizer: PsalmTokenizer, text: str) -> None:
    want = reference(folder, text)
    assert tokenizer.encode(text) == want
    assert tokenizer.tokenizer.decode(want, skip_special_tokens=False) == text


def test_the_file_that_is_written_reads_back(folder: Path, tokenizer: PsalmTokenizer) -> None:
    again = Tokenizer.from_str(tokenizer.tokenizer.to_str(pretty=False))
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_ids_are_read_from_the_files(folder: Path, tokenizer: PsalmTokenizer) -> None:
    added = json.loads((folder / "added_tokens.json").read_text())
    assert tokenizer.seg == added["[SEG]"] == tokenizer.size - 1
    assert tokenizer.encode("  ") == [added["  "]]  # two spaces are one token, as in the region prompt
    assert tokenizer.eos == json.loads((folder / "vocab.json").read_text())["<|endoftext|>"]


def test_stripping_stands_in_the_settings(folder: Path, tmp_path: Path) -> None:
    """What tokenizer_config.json says of an added token is kept."""
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    described = {"450": {"content": "[SEG]", "lstrip": True, "rstrip": False, "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": described}))
    tokenizer = read_psalm_tokenizer(tmp_path, 1000)
    assert tokenizer.encode("disc [SEG]") == [*tokenizer.encode("disc"), tokenizer.seg]
