"""A LLaMA with random weights that int4 does not change, for two exporters; and ours of its language graph alone.

Its head says after each token the one that follows it in a fixed random order, by a wide margin: answers are long,
and the same on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pixelrt.bundle import GraphFile, Tensor
from pixelrt_export.checkpoint import Checkpoint
from pixelrt_export.graph import Graph
from pixelrt_export.graphs.language import OPSETS, build_language, token_head
from pixelrt_export.model_config import language_config
from pixelrt_export.quantize.plan import HEAD, LANGUAGE_LAYERS, with_shortlist
from pixelrt_export.quantize.products import int4_product
from pixelrt_export.weight_file import WeightFile
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from benchmarks.peers.grid import ORT_PEAK, blocks_of, on_grid
from benchmarks.random_checkpoint import random_tensor

SPECIAL = 3  # unknown, begin, end: no token is followed by one of them
MARGIN = 2.0**-6  # of the head's rows to the embeddings they point along


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    vocab: int = 32000
    head_dim: int = 128

    @property
    def intermediate(self) -> int:
        """LLaMA's rule: 8/3 of the width, up to the next multiple of 256."""
        return -(-8 * self.width // 3 // 256) * 256

    @property
    def config(self) -> dict:
        heads = self.width // self.head_dim
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
        }


def follower(vocab: int) -> np.ndarray:
    """(V,): the token that follows each."""
    order = np.random.default_rng(5).permutation(np.arange(SPECIAL, vocab))
    follows = np.full(vocab, order[0])
    follows[order] = np.roll(order, -1)
    return follows


def write_llama(folder: Path, size: Size) -> Path:
    """config.json, model.safetensors in float16 and a tokenizer, which only the other exporter asks for."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(size.config, indent=1))
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(SPECIAL, size.vocab)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | marks)
    )
    width, wide = size.width, size.intermediate
    shapes = {f"self_attn.{x}_proj": (width, width) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide)}
    tensors = {"model.norm.weight": random_tensor("model.norm.weight", (width,))}
    for i in range(size.layers):
        for leaf, shape in shapes.items():
            name = f"model.layers.{i}.{leaf}.weight"
            tensors[name] = on_grid(random_tensor(name, shape), ORT_PEAK)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{i}.{norm}.weight"
            tensors[name] = random_tensor(name, (width,))
    table = on_grid(random_tensor("model.embed_tokens.weight", (size.vocab, width)), ORT_PEAK)
    follows = follower(size.vocab)
    head = np.zeros_like(table)
    head[follows[SPECIAL:]] = table[SPECIAL:] * np.float16(MARGIN)
    tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": head}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def export_language(checkpoint: Path, folder: Path, rounded_head: bool) -> GraphFile:
    """The language graph that the runtime takes of an int4 bundle; rounded_head: its head too, which bundles keep in
    16 bits, with a shortlist."""
    opened = Checkpoint.open(checkpoint)
    config = language_config(opened.config, "llama", str(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)

    def chosen(name: str) -> bool:
        return name.startswith(LANGUAGE_LAYERS) or (rounded_head and name == HEAD)

    product = int4_product(lambda name, make: blocks_of(make()), chosen)
    if not rounded_head:
        product = with_shortlist(product)
    opset, path = OPSETS["in_place"], folder / "language.fp32.onnx"
    (folder / "weights.data").unlink(missing_ok=True)
    with WeightFile(folder / "weights.data") as weights:
        g = Graph("language", weights, activations="float32", storage="float16", opset=opset, product=product)
        head = token_head(opened.tensor, config, shortlist=not rounded_head)
        build_language(g, opened.tensor, config, "in_place", head)
        g.save(path)
    inputs, outputs = (
        tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in side)
        for side in (g.inputs, g.outputs)
    )
    return GraphFile(path, "float32", opset, "in_place", inputs, outputs)
