"""LLaMA's legacy tokenizer as a `tokenizers.Tokenizer`: from tokenizer.model and added_tokens.json.

PixelLM was trained with transformers 4.31's slow LlamaTokenizer, whose habits later versions dropped: text is
cut at added tokens, white space around one is removed unless its AddedToken says otherwise, and each piece
between is encoded by sentencepiece on its own, with its own leading space. Merging by piece score is the
same as a merge list ordered by score, so the runtime needs no sentencepiece.

One difference is known and left: Python strips U+001C to U+001F as white space, `tokenizers` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.bundle import sha256_of
from pixelrt.errors import InputError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from pixelrt_export.checkpoint import file_inside, read_json

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # sentencepiece's piece types that LLaMA has
RETAKE = "take the file from the release"
BPE = 2  # sentencepiece's model_type
SPACE = "▁"
FILES = ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": None,
}  # LlamaTokenizer's


@dataclass(frozen=True)
class LlamaTokenizer:
    tokenizer: Tokenizer
    added_tokens: dict[str, int]  # of added_tokens.json: text -> id
    bos: int
    eos: int
    unk: int
    size: int  # ids are 0 .. size - 1


@dataclass(frozen=True)
class _Pieces:
    vocab: dict[str, int]
    scores: dict[str, float]  # of what text can become: no control, unknown or byte pieces
    unk: str
    byte_fallback: bool


def read_llama_tokenizer(folder: Path) -> LlamaTokenizer:
    """From a checkpoint folder. No bos is added by the tokenizer itself."""
    pieces = _read_pieces(file_inside(folder, "tokenizer.model"))
    settings = _read_if_present(folder, "tokenizer_config.json")
    if settings.get("legacy") is False:
        raise InputError(
            f"{folder / 'tokenizer_config.json'} says legacy: false, and PixelLM was trained with the legacy "
            f"tokenizer (transformers 4.31): {RETAKE}"
        )
    added = _read_added(folder, len(pieces.vocab))
    special, strips = _special_tokens(settings, _read_if_present(folder, "special_tokens_map.json"))

    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces.vocab,
            merges=_merges(pieces),
            unk_token=pieces.unk,
            fuse_unk=True,
            byte_fallback=pieces.byte_fallback,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    ids = pieces.vocab | added
    for text in (*added, *strips):
        if text not in ids:
            raise InputError(
                f"{folder}: added_tokens.json lacks {text!r}, which its other files call a special token"
            )
        left, right = strips.get(text, (True, True))
        token = AddedToken(text, lstrip=left, rstrip=right, normalized=False, special=text in strips)
        (tokenizer.add_special_tokens if text in strips else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(text) != ids[text]:
            raise InputError(
                f"{folder}: {text!r} would get id {tokenizer.token_to_id(text)}, wanted {ids[text]}"
            )
    tokenizer.decoder = _decoder(added)
    bos, eos, unk = (ids[special[name]] for name in ("bos_token", "eos_token", "unk_token"))
    return LlamaTokenizer(tokenizer, added, bos, eos, unk, len(ids))


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files a tokenizer is read from, by name."""
    return {name: sha256_of(folder / name) for name in FILES if (folder / name).is_file()}


def seg_token_ids(added_tokens: Mapping[str, int], count: int) -> list[int]:
    """Ids of a target's tokens in their order: [SEG0] … [SEG{count-1}], or [SEG] alone."""
    return _ids(added_tokens, ["[SEG]"] if count == 1 else [f"[SEG{i}]" for i in range(count)])


def image_mark_ids(added_tokens: Mapping[str, int]) -> tuple[int, int]:
    """Ids of the marks around an image."""
    start, end = _ids(added_tokens, ["<im_start>", "<im_end>"])
    return start, end


def _ids(added_tokens: Mapping[str, int], names: list[str]) -> list[int]:
    missing = [name for name in names if name not in added_tokens]
    if missing:
        raise InputError(
            f"added_tokens.json lacks {', '.join(missing)}, which prompts and answers are made of: {RETAKE}"
        )
    return [added_tokens[name] for name in names]


def _read_pieces(path: Path) -> _Pieces:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        wanted = "download it again (a Git LFS pointer? run  git lfs pull)"
        raise InputError(f"{path} is no sentencepiece model: {wanted}") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    checks = {
        "a BPE model": trainer.model_type == BPE,
        "no text normalisation": normalizer.name == "identity" or not normalizer.precompiled_charsmap,
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "no remove_extra_whitespaces": not normalizer.remove_extra_whitespaces,
        "no treat_whitespace_as_suffix": not trainer.treat_whitespace_as_suffix,
        "normal, byte and control pieces only": all(
            piece.type in (NORMAL, UNKNOWN, CONTROL, BYTE) for piece in model.pieces
        ),
        "one unknown piece": sum(piece.type == UNKNOWN for piece in model.pieces) == 1,
    }
    failed = [name for name, met in checks.items() if not met]
    if failed:
        raise InputError(
            f"{path} is no LLaMA tokenizer: wanted {', '.join(failed)}; take it from the release"
        )
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    unk = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    lost = sorted({letter for piece in scores for letter in piece} - scores.keys())
    bytes_lost = trainer.byte_fallback and any(f"<0x{byte:02X}>" not in vocab for byte in range(256))
    if lost or bytes_lost or len(vocab) != len(model.pieces):
        what = (
            "byte pieces"
            if bytes_lost
            else f"pieces for {' '.join(lost[:10])}"
            if lost
            else "distinct pieces"
        )
        raise InputError(f"{path} lacks {what}: {RETAKE}")
    return _Pieces(vocab, scores, unk, trainer.byte_fallback)


def _merges(pieces: _Pieces) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first; ties in vocabulary order."""
    scores, vocab = pieces.scores, pieces.vocab
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                ranked.append((-score, vocab[piece], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _decoder(added: Iterable[str]) -> Any:
    """Ids -> text as the slow tokenizer writes it, special tokens skipped.

    A run of text loses its leading space, and runs and added tokens are joined by spaces.
    """
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    either = "|".join(re.escape(text) for text in sorted(added, key=len, reverse=True))
    if either:
        steps.append(decoders.Replace(Regex(rf"(?<={either})(?=[^ ])(?!{either})"), " "))
        steps.append(decoders.Replace(Regex(f"(?={either})"), " "))
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])


def _read_if_present(folder: Path, name: str) -> dict[str, Any]:
    return read_json(file_inside(folder, name)) if (folder / name).exists() else {}


def _read_added(folder: Path, first: int) -> dict[str, int]:
    added = read_json(file_inside(folder, "added_tokens.json"))
    path = folder / "added_tokens.json"
    if not all(type(i) is int for i in added.values()) or "" in added:
        raise InputError(f"{path} must map texts to whole numbers: {RETAKE}")
    added = dict(sorted(added.items(), key=lambda item: item[1]))
    if list(added.values()) != list(range(first, first + len(added))):
        raise InputError(
            f"{path} gives the ids {', '.join(map(str, added.values()))}, wanted each once and from {first}, "
            "where tokenizer.model ends: take both files from one release"
        )
    return added


def _special_tokens(
    settings: Mapping[str, Any], names: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, tuple[bool, bool]]]:
    """(role -> text, text -> (lstrip, rstrip)) of the special tokens.

    special_tokens_map.json overrides tokenizer_config.json. A plain text strips on both sides in the former;
    of the latter's, and of its own defaults, the slow tokenizer makes AddedTokens, which strip nothing.
    """
    roles: dict[str, str] = {}
    strips: dict[str, tuple[bool, bool]] = {}
    entries: list[tuple[str, Any, bool]] = []  # role, token, whether a plain text strips
    for role, default in SPECIAL.items():
        stated = names.get(role)
        entries.append((role, stated or settings.get(role) or default, stated is not None))
    more = names.get("additional_special_tokens") or []
    entries += [("", token, True) for token in (more if isinstance(more, list) else [more])]
    for role, token, plain_strips in entries:
        if token is None:
            continue
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) or not text:
            raise InputError(
                f"special_tokens_map.json or tokenizer_config.json names {token!r} as a token: {RETAKE}"
            )
        if role:
            roles[role] = text
        if isinstance(token, dict):
            strips[text] = (bool(token.get("lstrip")), bool(token.get("rstrip")))
        elif not plain_strips:
            strips[text] = (False, False)
        else:
            strips.setdefault(text, (True, True))
    return roles, strips
