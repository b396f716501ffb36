"""tokenizer.json against the original's recorded ids, and against sentencepiece with the slow cutting."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from pixelrt.errors import InputError
from pixelrt_export.llama_tokenizer import (
    LlamaTokenizer,
    image_mark_ids,
    read_llama_tokenizer,
    seg_token_ids,
)
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

LETTERS = (
    *(
        "the ",
        "a",
        "aa",
        "aaa",
        "Segment ",
        "human ",
        "assist",
        ". ",
        ",",
        "1",
        "12",
        "[SEG",
        "]",
        "<0x41>",
        "im_end>",
    ),
    *(
        " ",
        "  ",
        "     ",
        "\n",
        "\t",
        "\r\n",
        "▁",
        "▁▁",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\u0085",
    ),  # white, or near it
    *("é", "e\u0301", "犬", "😀", "ﬁ", "İ", "\u200b", "\x00", "\x7f", "\U0010ffff"),
)


class Slow:
    """transformers 4.31's LlamaTokenizer in a few lines: text -> ids -> text."""

    def __init__(self, folder: Path, added: dict[str, int], strips: dict[str, tuple[bool, bool]]) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        special = {text: self.pieces.piece_to_id(text) for text in ("<s>", "</s>", "<unk>")}
        self.added, self.ids = {i: text for text, i in added.items()}, special | added
        self.strips = dict.fromkeys(self.ids, (True, True)) | dict.fromkeys(special, (False, False)) | strips

    def encode(self, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.ids))})", text)
        for i in range(1, len(parts), 2):
            left, right = self.strips[parts[i]]
            parts[i - 1] = parts[i - 1].rstrip() if left else parts[i - 1]
            parts[i + 1] = parts[i + 1].lstrip() if right else parts[i + 1]
        ids = []
        for i, part in enumerate(parts):
            ids += [self.ids[part]] if i % 2 else self.pieces.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Special tokens skipped; runs of pieces and added tokens joined by spaces."""
        parts: list[Any] = []
        for i in ids:
            if i in self.added:
                parts.append(self.added[i])
            elif not self.pieces.is_control(i) and not self.pieces.is_unknown(i):
                parts = parts if parts and isinstance(parts[-1], list) else [*parts, []]
                parts[-1].append(i)
        return " ".join(part if isinstance(part, str) else self.pieces.decode(part) for part in parts)


@pytest.fixture(scope="module")
def golden(golden_pixellm: Path) -> list[dict[str, Any]]:
    texts: list[dict[str, Any]] = json.loads((golden_pixellm / "tokenizer/golden_tokens.json").read_text())
    return texts


@pytest.fixture(scope="module")
def llama(golden_pixellm: Path) -> LlamaTokenizer:
    return read_llama_tokenizer(golden_pixellm / "tokenizer")


@pytest.fixture
def folder(golden_pixellm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_pixellm / "tokenizer", tmp_path / "tokenizer"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model(folder: Path, change: Any) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def test_the_originals_ids(golden: list[dict[str, Any]], llama: LlamaTokenizer) -> None:
    texts = [entry for entry in golden if "text" in entry]
    assert len(texts) == 10
    for entry in texts:
        ids = [llama.bos]
        for i, chunk in enumerate(entry["text"].split("<image>")):
            ids += [-200] * (i > 0) + llama.tokenizer.encode(chunk).ids
        assert ids == entry["ids"], entry["text"]


def test_the_originals_text(golden: list[dict[str, Any]], llama: LlamaTokenizer) -> None:
    """Also after generated ids, whose runs need not begin with a space."""
    for entry in golden:
        text = llama.tokenizer.decode([i for i in entry["ids"] if i >= 0])
        if "decoded" in entry:
            assert text == entry["decoded"].removeprefix("<s>").removeprefix(" ")
        else:
            assert entry["decoded_tail"].removesuffix(" </s>").endswith(text), entry["case"]


def test_sizes_and_ids_come_from_the_files(llama: LlamaTokenizer) -> None:
    assert (llama.bos, llama.eos, llama.unk, llama.size) == (1, 2, 0, 408)
    assert llama.tokenizer.get_vocab_size() == 408
    assert seg_token_ids(llama.added_tokens, 6) == [400, 401, 402, 403, 404, 405]
    assert image_mark_ids(llama.added_tokens) == (406, 407)


@pytest.mark.parametrize("flags", ["as released", "texts", "objects"])
def test_any_text_is_cut_as_the_slow_tokenizer_cuts_it(flags: str, folder: Path) -> None:
    strips: dict[str, tuple[bool, bool]] = {}
    special = folder / "special_tokens_map.json"
    if flags == "texts":
        edit(special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        strips = dict.fromkeys(("<s>", "</s>", "<unk>"), (True, True))
    elif flags == "objects":
        token = {"content": "<im_start>", "lstrip": False, "rstrip": True, "normalized": True}
        edit(special, additional_special_tokens=[token, "<im_end>"], eos_token=token | {"content": "</s>"})
        strips = {"<im_start>": (False, True), "</s>": (False, True)}
    read = read_llama_tokenizer(folder)
    fast = Tokenizer.from_str(read.tokenizer.to_str())
    slow = Slow(folder, read.added_tokens, strips)
    rng = random.Random(flags)
    alphabet = (*LETTERS, *slow.ids, *read.added_tokens)
    for _ in range(3000):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 14)))
        ids = slow.encode(text)
        assert fast.encode(text).ids == ids, repr(text)
        if flags != "objects":  # there <im_end> is special, and skipped
            assert fast.decode(ids) == slow.decode(ids), repr(text)


def test_tokenizer_config_speaks_where_the_map_is_silent(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    edit(folder / "tokenizer_config.json", eos_token="</s>", bos_token={"content": "<s>", "rstrip": True})
    read = read_llama_tokenizer(folder)
    slow = Slow(folder, read.added_tokens, {"<s>": (False, True)})
    for text in ("a </s> b", "a <s> b", "<s> [SEG0] </s>  x"):
        assert read.tokenizer.encode(text).ids == slow.encode(text)
    (folder / "tokenizer_config.json").unlink()
    assert read_llama_tokenizer(folder).eos == 2


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"[SEG0]": 400, "[SEG1]": 402}, "wanted each once and from 400"),
        ({"[SEG0]": 400, "[SEG1]": 400}, "wanted each once and from 400"),
        ({"[SEG0]": 399}, "wanted each once and from 400"),
        ({"": 400}, "must map texts to whole numbers"),
        ({"[SEG0]": "400"}, "must map texts to whole numbers"),
        ({"▁the": 400}, "would get id"),
    ],
)
def test_added_tokens_that_fit_no_embedding_row(added: dict[str, Any], says: str, folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(InputError, match=says):
        read_llama_tokenizer(folder)


def test_missing_ids_are_named() -> None:
    added = {"[SEG0]": 10, "[SEG2]": 11}
    assert seg_token_ids({"[SEG]": 7}, 1) == [7]
    with pytest.raises(InputError, match=r"lacks \[SEG1\], \[SEG3\],"):
        seg_token_ids(added, 4)
    with pytest.raises(InputError, match=r"lacks \[SEG\],"):
        seg_token_ids(added, 1)
    with pytest.raises(InputError, match="lacks <im_start>, <im_end>,"):
        image_mark_ids(added)


def test_special_token_without_an_id(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", pad_token="[PAD]")
    with pytest.raises(InputError, match=r"lacks '\[PAD\]'"):
        read_llama_tokenizer(folder)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"])
def test_no_value_of_any_key_breaks_the_reader(name: str, folder: Path) -> None:
    whole = json.loads((folder / name).read_text())
    for key in (*whole, "additional_special_tokens"):
        for value in ("x", "", [], [1], {}, {"content": 1}, 7, 1.5, True, None):
            (folder / name).write_text(json.dumps(whole | {key: value}))
            try:
                read_llama_tokenizer(folder)
            except InputError:
                continue


def test_missing_and_unreadable_files(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", legacy=False)
    with pytest.raises(InputError, match="says legacy: false"):
        read_llama_tokenizer(folder)
    edit(folder / "tokenizer_config.json", legacy=True)
    (folder / "added_tokens.json").unlink()
    with pytest.raises(InputError, match=r"lacks added_tokens\.json"):
        read_llama_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs")
    with pytest.raises(InputError, match="is no sentencepiece model"):
        read_llama_tokenizer(folder)


@pytest.mark.parametrize(
    ("part", "name", "value", "says"),
    [
        ("trainer_spec", "model_type", 1, "a BPE model"),
        ("trainer_spec", "treat_whitespace_as_suffix", True, "treat_whitespace_as_suffix"),
        ("normalizer_spec", "add_dummy_prefix", False, "add_dummy_prefix"),
        ("normalizer_spec", "escape_whitespaces", False, "escape_whitespaces"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "remove_extra_whitespaces"),
    ],
)
def test_other_sentencepiece_models(part: str, name: str, value: Any, says: str, folder: Path) -> None:
    edit_model(folder, lambda model: setattr(getattr(model, part), name, value))
    with pytest.raises(InputError, match=f"wanted .*{says}"):
        read_llama_tokenizer(folder)


def test_other_sentencepiece_pieces(folder: Path) -> None:
    def normalise(model: Any) -> None:
        model.normalizer_spec.name, model.normalizer_spec.precompiled_charsmap = "nmt_nfkc", b"\x01"

    def user_defined(model: Any) -> None:
        model.pieces[-1].type = 4

    def no_letter(model: Any) -> None:
        next(piece for piece in model.pieces if piece.piece == "h").piece = "ħ"

    def no_byte(model: Any) -> None:
        next(piece for piece in model.pieces if piece.piece == "<0x41>").piece = "<0x4>"

    whole = (folder / "tokenizer.model").read_bytes()
    for change, says in (
        (normalise, "no text normalisation"),
        (user_defined, "normal, byte and control pieces only"),
        (no_letter, "lacks pieces for h"),
        (no_byte, "lacks byte pieces"),
    ):
        (folder / "tokenizer.model").write_bytes(whole)
        edit_model(folder, change)
        with pytest.raises(InputError, match=says):
            read_llama_tokenizer(folder)
