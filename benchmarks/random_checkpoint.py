"""A PixelLM checkpoint of real widths with random weights, in the released layout.

    python benchmarks/random_checkpoint.py OUT [--hidden 4096 --layers 2 ...]

writes OUT/pixellm (sharded safetensors, tokenizer) and OUT/clip. The defaults are PixelLM-7B with CLIP-L/14 at
448 px. The weights mean nothing, but lm_head is fitted so that greedy decoding gives a fixed answer of twelve
tokens: three words, one target's six codebook tokens, two words, end.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from pixelrt_export.config import PixelLMConfig
from pixelrt_export.families.pixellm import TEMPLATE
from pixelrt_export.pixellm_tensors import pixellm_tensors
from pixelrt_export.vision_tower import vision_tensors
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2 as proto

SHARD_BYTES = 1 << 30
QUESTION = " Can you segment the dog in this image?"
SEG = [f"[SEG{i}]" for i in range(6)]
Shapes = dict[str, tuple[int, ...]]


def language_config(hidden: int, layers: int, heads: int, intermediate: int, vocab: int) -> dict:
    """config.json of a PixelLM; every key it leaves out has the released value."""
    return {
        "architectures": ["PixelLMForCausalLM"],
        "model_type": "llava",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_hidden_size": 1024,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": True,
        "train_mask_decoder": True,
        "out_dim": 256,
        "image_feature_scale_num": 2,
        "torch_dtype": "float16",
    }


CLIP_L = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def write_tokenizer(folder: Path, vocab: int) -> sentencepiece.SentencePieceProcessor:
    """A byte-fallback BPE of `vocab` pieces that knows the words of the prompt, with the released added tokens.

    Prompts come out about as long as with LLaMA's own vocabulary: each known word is one token, as all of its
    prefixes are pieces too.
    """
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = vocab
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = proto.ModelProto.SentencePiece
    for text, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=text, score=0.0, type=kind)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    words = {f"▁{word}" for word in re.sub("<.*?>|{.*?}", " ", TEMPLATE + QUESTION).split()}
    prefixes = sorted(
        {word[:n] for word in words for n in range(2, len(word) + 1)}, key=lambda t: (len(t), t)
    )
    known = ["▁", *(chr(c) for c in range(33, 127)), *prefixes]
    for i in range(vocab - 259):
        text = known[i] if i < len(known) else chr(0xF0000 + i)  # private use: never in a prompt
        model.pieces.add(piece=text, score=float(-i), type=kinds.NORMAL)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    added = {name: vocab + i for i, name in enumerate(["<im_start>", "<im_end>", *SEG])}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=1))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True})
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp16 values seeded by the name; matrices scaled so that activations keep their size through the layers."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, np.float32)
    if name.endswith("norm.weight") or ("norm" in name and name.endswith("weight") and len(shape) == 1):
        x = 1 + 0.1 * x
    elif name.endswith("bias"):
        x *= 0.02
    elif "embed" in name or "gaussian" in name or "tokens" in name:
        x *= 1.0 if name == "model.embed_tokens.weight" else 0.3
    else:
        fan_in = int(np.prod(shape[1:])) or 1
        quiet = any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2"))
        x *= (0.1 if quiet else 1.0) / np.sqrt(fan_in)
    return x.astype(np.float16)


def fitted_head(embeddings: np.ndarray, chain: dict[int, int]) -> np.ndarray:
    """lm_head whose arg-max after token a is chain[a]: the row of chain[a] points along the embedding of a."""
    rng = np.random.default_rng(7)
    head = 0.001 * rng.standard_normal(embeddings.shape, np.float32)
    for token, successor in chain.items():
        head[successor] += 8 * embeddings[token].astype(np.float32) / embeddings.shape[1]
    return head.astype(np.float16)


def with_dead_tensors(shapes: Shapes, width: int, clip_layers: int) -> tuple[Shapes, Shapes]:
    """The tensors a release holds though nothing reads them: (of PixelLM, of CLIP)."""
    dead: Shapes = {"model.prompt_encoder.not_a_point_embed.weight": (1, width)}
    dead |= {f"model.prompt_encoder.point_embeddings.{i}.weight": (1, width) for i in range(4)}
    down = "model.prompt_encoder.mask_downscaling"
    for i, (out, fan_in, side) in {0: (4, 1, 2), 3: (16, 4, 2), 6: (width, 16, 1)}.items():
        dead |= {f"{down}.{i}.weight": (out, fan_in, side, side), f"{down}.{i}.bias": (out,)}
    for i, out in {1: 4, 4: 16}.items():
        dead |= {f"{down}.{i}.weight": (out,), f"{down}.{i}.bias": (out,)}
    decoder = "model.mask_decoder"
    live = f"{decoder}.output_hypernetworks_mlps.0."
    for i in range(1, 4):
        dead |= {k.replace("mlps.0.", f"mlps.{i}."): v for k, v in shapes.items() if k.startswith(live)}
    for i, out in enumerate((width, width, 4)):
        layer = f"{decoder}.iou_prediction_head.layers.{i}"
        dead |= {f"{layer}.weight": (out, width), f"{layer}.bias": (out,)}
    last = f"vision_model.encoder.layers.{clip_layers - 1}."
    return dead, {
        "vision_model.post_layernorm.weight": (1024,),
        "vision_model.post_layernorm.bias": (1024,),
        last: (),
    }


def shards(tensors: Iterator[tuple[str, np.ndarray]], folder: Path) -> None:
    """Write tensors into files of about SHARD_BYTES with an index; one shard is in memory at a time."""
    pending: dict[str, np.ndarray] = {}
    files: list[list[str]] = []

    def flush() -> None:
        if pending:
            files.append(list(pending))
            save_file(pending, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
            pending.clear()

    for name, tensor in tensors:
        pending[name] = tensor
        if sum(t.nbytes for t in pending.values()) > SHARD_BYTES:
            flush()
    flush()
    weight_map = {}
    for i, names in enumerate(files, 1):
        shard = f"model-{i:05}-of-{len(files):05}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_checkpoint(
    out: Path,
    *,
    hidden: int = 4096,
    layers: int = 32,
    heads: int = 32,
    intermediate: int = 11008,
    pieces: int = 32000,
    weight: Callable[[str, tuple[int, ...]], np.ndarray] = random_tensor,
    endless: bool = False,
) -> Path:
    """Write OUT/pixellm and OUT/clip and return OUT/pixellm. weight: makes each tensor but lm_head.

    endless: the answer begins again in place of its end, a target in every twelve tokens.
    """
    pixellm, clip = out / "pixellm", out / "clip"
    for folder in (pixellm, clip):
        folder.mkdir(parents=True, exist_ok=True)
    vocab = pieces + 2 + len(SEG)
    config = language_config(hidden, layers, heads, intermediate, vocab)
    words = write_tokenizer(pixellm, pieces)
    (pixellm / "config.json").write_text(json.dumps(config, indent=1))
    (clip / "config.json").write_text(json.dumps(CLIP_L, indent=1))

    parsed = PixelLMConfig.from_configs(config, CLIP_L)
    shapes = pixellm_tensors(parsed, {})
    dead, clip_dead = with_dead_tensors(shapes, parsed.decoder_dim, parsed.vision.layers)
    clip_shapes = vision_tensors(parsed)
    last = next(name for name in clip_dead if name.endswith("."))
    first = "vision_model.encoder.layers.0."
    clip_dead |= {k.replace(first, last): v for k, v in clip_shapes.items() if k.startswith(first)}
    del clip_dead[last]

    letters = [words.piece_to_id(letter) for letter in "abcde"]
    seg = list(range(pieces + 2, vocab))
    # Three words, a target, two words, end: 12 tokens.
    answer = [*letters[:3], *seg, *letters[3:], words.piece_to_id("f") if endless else 2]
    chain = dict(zip([words.encode("ASSISTANT:")[-1], *answer[:-1]], answer, strict=True))
    if endless:
        chain[answer[-1]] = answer[0]

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in (shapes | dead).items():
            if name == "lm_head.weight":
                yield name, fitted_head(random_tensor("model.embed_tokens.weight", shape), chain)
            else:
                yield name, weight(name, shape)

    shards(tensors(), pixellm)
    shards(((name, weight(name, shape)) for name, shape in (clip_shapes | clip_dead).items()), clip)
    return pixellm


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    for option, default in (
        ("hidden", 4096),
        ("layers", 32),
        ("heads", 32),
        ("intermediate", 11008),
        ("pieces", 32000),
    ):
        parser.add_argument(f"--{option}", type=int, default=default)
    arguments = vars(parser.parse_args())
    print(write_checkpoint(arguments.pop("out"), **arguments))
