"""Place the golden weights as a released PixelLM checkpoint: OUT/pixellm and, beside it, OUT/clip.

No weight is stored here: each is `fill(key, shape)`, or `lm_head(...)`, of tiny_weights.py and must have the
hash that weights_sha256.json holds for it.

    python make_checkpoint.py OUT [A|B] [float32|float16|bfloat16|released] [LAYOUT]

Heads: A loops through the answer for ever, B ends after one target. `released` is the mixture of the
published files: language model and projectors in bfloat16, the rest in float32, rotary buffers included.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
LAYOUTS = ("safetensors", "sharded-safetensors", "bin", "sharded-bin")
PIXEL_MODULES = ("text_hidden_fcs", "mask_decoder", "prompt_encoder", "image_feature_neck", "rotary_emb")

Tensors = dict[str, np.ndarray]
_rule = runpy.run_path(str(HERE / "tiny_weights.py"))


def write_checkpoint(out: Path, head: str = "A", dtype: str = "float32", layout: str = "safetensors") -> Path:
    """Write both folders and return OUT/pixellm."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}; wanted one of {', '.join(LAYOUTS)}")
    golden = json.loads((HERE / "golden.json").read_text())
    model, clip = golden_tensors(head)
    if dtype == "released":
        for i in range(golden["llm"]["num_hidden_layers"]):
            head_dim = golden["llm"]["hidden_size"] // golden["llm"]["num_attention_heads"]
            inv_freq = 1 / 10000 ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
            model[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = inv_freq
    config = golden["llm"] | {"architectures": ["PixelLMForCausalLM"], "transformers_version": "4.31.0"}
    for name, settings in (("pixellm", config), ("clip", golden["clip"])):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "config.json").write_text(json.dumps(settings, indent=1))
    for file in (HERE / "tokenizer").iterdir():
        if file.name != "golden_tokens.json":
            shutil.copyfile(file, out / "pixellm" / file.name)
    write_tensors(out / "pixellm", {key: cast(key, w, dtype) for key, w in model.items()}, layout)
    write_tensors(out / "clip", clip, "safetensors")
    return out / "pixellm"


def golden_tensors(head: str) -> tuple[Tensors, Tensors]:
    """(PixelLM, CLIP) in float32, each checked against its recorded hash."""
    golden = json.loads((HERE / "golden.json").read_text())
    hashes: dict[str, tuple[list[int], str]] = json.loads((HERE / "weights_sha256.json").read_text())
    model, clip = {}, {}
    for name, (shape, _) in hashes.items():
        key, _, variant = name.partition("#")
        if variant and variant != head:
            continue
        if variant:
            chain = {int(token): following for token, following in golden["chain"].items()}
            if variant == "B":  # the end-of-text id follows the last seg token
                chain[golden["seg_token_idx"][-1]] = golden["llm"]["eos_token_id"]
            weight = _rule["lm_head"](_rule["fill"]("model.embed_tokens.weight", shape), chain)
        else:
            weight = _rule["fill"](key, shape)
        got = hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()[:16]
        if got != hashes[name][1]:
            raise ValueError(f"{name}: this numpy fills other values (sha256 {got}) than the golden run had")
        vision = key.startswith("vision_tower.")
        (clip if vision else model)[key.removeprefix("vision_tower.")] = weight.astype(np.float32)
    return model, clip


def cast(key: str, weight: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "released":
        dtype = "float32" if any(name in key for name in PIXEL_MODULES) else "bfloat16"
    return weight.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))


def write_tensors(folder: Path, tensors: Tensors, layout: str) -> None:
    """One file, or three shards and their index."""
    tensors = {key: np.ascontiguousarray(weight) for key, weight in tensors.items()}
    stem, suffix = ("pytorch_model", "bin") if layout.endswith("bin") else ("model", "safetensors")
    save = save_bin if suffix == "bin" else save_safetensors
    if not layout.startswith("sharded"):
        save(tensors, folder / f"{stem}.{suffix}")
        return
    keys = list(tensors)
    third = -(-len(keys) // 3)
    weight_map = {}
    for i in range(3):
        shard = {key: tensors[key] for key in keys[i * third : (i + 1) * third]}
        name = f"{stem}-{i + 1:05d}-of-00003.{suffix}"
        save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(weight.nbytes for weight in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=1))


def save_safetensors(tensors: Tensors, path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def save_bin(tensors: Tensors, path: Path) -> None:
    import torch

    def convert(weight: np.ndarray) -> torch.Tensor:
        if weight.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(weight.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(weight)

    torch.save({key: convert(weight) for key, weight in tensors.items()}, path)


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1]), *sys.argv[2:]))
