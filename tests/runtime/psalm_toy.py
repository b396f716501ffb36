"""A PSALM bundle without a model: real prompts, a language model that only adds, masks given by the test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
from pixelrt.bundle import GraphFile, Tensor
from pixelrt.engine import HostMemory
from pixelrt.families.psalm import Psalm
from tokenizers.pre_tokenizers import ByteLevel

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "psalm"
SQUARE, TOKENS, WIDTH, QUERIES = 128, 4, 8, 20
SEG, VOCABULARY = 257, 260
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "golden.json").read_text())


def write_tokenizer(path: Path) -> Path:
    """One token a byte, numbered by the byte, and three added tokens."""
    letters = {bytes_letter(byte): byte for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["[PAD]", "[SEG]", "<|endoftext|>"])
    tokenizer.save(str(path))
    return path


def bytes_letter(byte: int) -> str:
    """The letter by which byte-level tokenizers write a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in plain else chr(256 + [b for b in range(256) if b not in plain].index(byte))


def prompt_entry() -> dict[str, Any]:
    """The manifest's `prompt`, cut from the prompts that the original wrote."""
    said = golden()
    whole = {
        "class": said["prompt_category"],
        "sentence": said["prompt_referring"],
        "region": said["prompt_region"],
    }
    listed = {"class": ", ".join(["<cls>"] * 7), "sentence": "<refer>", "region": ", ".join(["<region>"] * 3)}
    return {
        "templates": {
            kind: text.partition("<seg>")[0].replace(listed[kind], "{conditions}") + "<seg>"
            for kind, text in whole.items()
        },
        "condition": {"class": "<cls>", "sentence": "<refer>", "region": "<region>"},
        "separator": ", ",
        "class_suffix": "[SEG]",
        "sentence_suffix": "[SEG]",
        "sentence_item": " {sentence}.",
        "background": "background",
    }


def tokens_entry() -> dict[str, Any]:
    return {
        "tokenizer": "tokenizer.json",
        "seg": SEG,
        "image_tokens": TOKENS,
        "mask_tokens": {"first": VOCABULARY, "count": QUERIES},
    }


class Graph:
    """An engine from a function; `calls` keeps the inputs of each call."""

    def __init__(self, function: Any, cache: str | None = None) -> None:
        past = tuple(
            Tensor(f"past.0.{part}", "activations", ("B", 1, "P", WIDTH)) for part in ("key", "value")
        )
        self.file = GraphFile(Path("none"), "float32", 21, cache, past if cache else (), ())
        self.function, self.calls, self.memory = function, [], HostMemory()

    def __call__(self, inputs: Any, into: Any = None) -> dict[str, np.ndarray]:
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        self.calls.append({name: value.copy() for name, value in inputs.items()})
        return self.function(inputs, into or {})


def adding_language(inputs: Any, into: Any) -> dict[str, np.ndarray]:
    """hidden[i] = sum over what i may look at of embedding[j] * (position j + 1): all that a cache can get wrong."""
    rows = inputs["inputs_embeds"] * (inputs["position_ids"][..., None] + 1)
    past = inputs["past.0.key"]
    if into:
        start = int(inputs["write_indices"][0])
        past[0, 0, start : start + rows.shape[1]] = rows[0]
        present = {"present.0.key": past, "present.0.value": inputs["past.0.value"]}
        seen = past[0, 0, : inputs["attn_mask"].shape[-1]]
    else:
        seen = np.concatenate([past[0, 0], rows[0]])
        present = {"present.0.key": seen[None, None], "present.0.value": seen[None, None]}
    hidden = inputs["attn_mask"][0, 0].astype(np.float32) @ seen
    return {
        "queries": hidden[inputs["query_rows"]][None],
        "conditions": (inputs["pool"][0] @ hidden)[None],
        **present,
    }


class Toy:
    """backend, bundle and the graphs; `masks` (Q, h, w) and `scores` (queries, conditions) -> (Q, K) to set."""

    name = "toy"

    def __init__(self, folder: Path, cache: str = "in_place") -> None:
        write_tokenizer(folder / "tokenizer.json")
        rows = VOCABULARY + QUERIES
        np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32).tofile(
            folder / "embeddings.bin"
        )
        self.masks = np.full((QUERIES, 32, 32), -5, np.float32)
        self.scores = np.zeros((QUERIES, 1000), np.float32)
        self.encoder = Graph(self._encode)
        self.language = Graph(adding_language, cache)
        self.pixel_decoder = Graph(self._decode)
        manifest = {
            "family": "psalm",
            "image": {
                "size": SQUARE,
                "patch": 32,
                "mean": MEAN,
                "std": STD,
                "fill": [(128 - m) / s for m, s in zip(MEAN, STD, strict=True)],
            },
            "prompt": prompt_entry(),
            "conditions": {"class": 0, "sentence": 1, "region": 2},
            "tokens": tokens_entry(),
            "language": {"hidden": WIDTH, "layers": 1, "max_positions": 20000},
            "embeddings": {"file": "embeddings.bin", "dtype": "float32", "shape": [rows, WIDTH]},
        }
        self.bundle: Any = SimpleNamespace(
            path=folder, manifest=manifest, sha256="ab" * 32, file=lambda name: folder / name
        )

    def open(self, graph: str) -> Graph:
        return getattr(self, graph)

    def load(self) -> Psalm:
        return Psalm(self.bundle, self)

    def _encode(self, inputs: Any, _: Any) -> dict[str, np.ndarray]:
        tokens = inputs["pixels"].reshape(1, 3, 2, 64, 2, 64).mean((3, 5)).reshape(1, 3, TOKENS)
        wide = np.zeros((1, TOKENS, WIDTH), np.float32)
        wide[..., :3] = tokens.transpose(0, 2, 1)
        return {"image_tokens": wide, "mask_features": inputs["pixels"][:, :1, ::4, ::4]}

    def _decode(self, inputs: Any, _: Any) -> dict[str, np.ndarray]:
        count = inputs["conditions"].shape[1]
        return {"mask_logits": self.masks[None], "scores": self.scores[None, :, :count]}


def tiled(folder: Path) -> Toy:
    """Query 5 y + x is a block of the picture; 3 is sure of the first condition, 7 of the second."""
    (folder / "bundle").mkdir()
    toy = Toy(folder / "bundle")
    for q in range(QUERIES):
        toy.masks[q, 6 * (q // 5) : 6 * (q // 5) + 5, 5 * (q % 5) : 5 * (q % 5) + 4] = 6
    toy.scores[:] = -9
    toy.scores[3, 0] = toy.scores[7, 1] = 9
    toy.scores[:, 2] = 0
    return toy
