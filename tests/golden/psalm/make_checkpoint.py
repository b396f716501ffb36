"""Place the golden weights as a released PSALM checkpoint: two safetensors shards, fp32, and its tokenizer files.

Each weight is made by tiny_weights.py and must have the hash that weights_sha256.json holds for it.

    python make_checkpoint.py OUT [stale]

`stale` adds what the published file holds beside the model: three Linears H x H and two scalars, under names of ours.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
SHARDS = 2
STALE = ("region_sampler.query", "region_sampler.key", "region_sampler.value")

Tensors = dict[str, np.ndarray]
_rule = runpy.run_path(str(HERE / "tiny_weights.py"))


def write_checkpoint(out: Path, stale: bool = False) -> Path:
    """Write the folder and return it."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = golden_tensors()
    if stale:
        tensors |= stale_tensors(tensors["seg_query"].shape[1])
    write_tensors(out, tensors)
    (out / "config.json").write_text(json.dumps(golden_config(), indent=1))
    write_tokenizer(out)
    return out


def golden_config() -> dict:
    """config.json as the original's trainer writes it; image_size is a key of ours for what its code states."""
    tiny = json.loads((HERE / "golden.json").read_text())["tiny_config"]
    return tiny["llm"] | {
        "architectures": ["PSALM"],
        "model_type": "llava_phi",
        "image_size": tiny["image_size"],
        "mm_projector_type": "swin_conv",
        "mm_input_embeds": tiny["projector"]["in_dim"],
        "mm_hidden_size": tiny["pixel_decoder"]["conv_dim"],
        "projector_outdim": tiny["projector"]["out_dim"],
        "swin_type": "base",
        "mask_decode_train": True,
        "qk_layernorm": False,
        "with_norm": True,
        "with_layernorm": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "transformers_version": "4.36.2",
    }


def golden_tensors() -> Tensors:
    """By the original's names, each checked against its recorded hash."""
    hashes: dict[str, tuple[list[int], str]] = json.loads((HERE / "weights_sha256.json").read_text())
    with np.load(HERE / "weights_ulps.npz") as stored:
        buffers = {key: _buffer(key, shape) for key, (shape, _) in hashes.items() if _is_buffer(key)}
        shapes = {key: tuple(shape) for key, (shape, _) in hashes.items() if key not in buffers}
        tensors = _rule["golden_weights"](shapes, stored) | buffers
    for key, (_, wanted) in hashes.items():
        got = hashlib.sha256(np.ascontiguousarray(tensors[key]).tobytes()).hexdigest()[:16]
        if got != wanted:
            raise ValueError(f"{key}: this numpy makes other values (sha256 {got}) than the golden run had")
    return tensors


def _is_buffer(key: str) -> bool:
    return key.endswith(("num_batches_tracked", "relative_position_index"))


def _buffer(key: str, shape: list[int]) -> np.ndarray:
    """What the original keeps beside its weights, int64; the graphs read none of it."""
    if not shape:
        return np.zeros((), np.int64)
    window = round(shape[0] ** 0.5)
    y, x = np.divmod(np.arange(shape[0]), window)
    dy, dx = y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1
    return (dy * (2 * window - 1) + dx).astype(np.int64)


def stale_tensors(hidden: int) -> Tensors:
    tensors = {f"{name}.weight": np.eye(hidden, dtype=np.float32) for name in STALE}
    tensors |= {f"{name}.bias": np.zeros(hidden, np.float32) for name in STALE}
    return tensors | {f"region_sampler.{name}": np.float32(1).reshape(()) for name in ("alpha", "beta")}


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """The shards and their index."""
    keys = list(tensors)
    count = -(-len(keys) // SHARDS)
    weight_map = {}
    for i in range(SHARDS):
        name = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        part = {key: np.require(tensors[key], requirements="C") for key in keys[i * count : (i + 1) * count]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_tokenizer(folder: Path) -> None:
    """GPT-2's files for the golden run's tokenizer: one token a byte, no merges, three added tokens."""
    special = json.loads((HERE / "golden.json").read_text())["tiny_config"]["tokenizer"]
    added = {"[PAD]": special["PAD"], "[SEG]": special["SEG"], "<|endoftext|>": special["EOS"]}
    files = {
        "vocab.json": {letter: byte for byte, letter in enumerate(byte_letters())},
        "added_tokens.json": added,
        "special_tokens_map.json": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        | {"pad_token": "[PAD]"},
        "tokenizer_config.json": {"add_prefix_space": False, "tokenizer_class": "CodeGenTokenizer"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")


def byte_letters() -> list[str]:
    """The letter by which GPT-2 writes each byte: itself where it prints, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1]), "stale" in sys.argv[2:]))
