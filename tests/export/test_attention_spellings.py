"""The language graph's three spellings of attention and cache say the same about every way a context is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the export extra")

from pixelrt.bundle import GraphFile, Tensor
from pixelrt.engine_ort import IN_PLACE_SINCE, VERSION, OrtEngine
from pixelrt.language import Context
from pixelrt_export.graph import Graph
from pixelrt_export.graphs import language
from pixelrt_export.model_config import LanguageConfig
from pixelrt_export.weight_file import WeightFile

WIDTH, INNER = 128, 192
# Heads, key/value heads, dims of a head, of which rotary
HEADS = {"llama": [(4, 2, 32, 32), (8, 8, 16, 16)], "phi": [(4, 4, 32, 16), (2, 2, 64, 32)]}

pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in VERSION.split(".")[:2]) < IN_PLACE_SINCE, reason="ONNX Runtime is too old"
)


class Weights:
    """Random ones, of the shape that a name asks for; a name's are always the same."""

    def __init__(self, config: LanguageConfig) -> None:
        kv = config.kv_heads * config.head_dim
        self.rows = {"k_proj": kv, "v_proj": kv, "gate_proj": INNER, "up_proj": INNER, "fc1": INNER}
        self.rows |= {"query_key_value": 3 * WIDTH, "lm_head": config.vocab}

    def __call__(self, name: str) -> np.ndarray:
        *_, leaf, kind = name.split(".")
        rows = self.rows.get(leaf, WIDTH)
        columns = INNER if leaf in ("down_proj", "fc2") else WIDTH
        rng = np.random.default_rng(sum(name.encode()))
        if kind == "bias" or "norm" in leaf:
            return (0.1 * rng.standard_normal(rows) + (kind == "weight")).astype(np.float32)
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)


def engine(config: LanguageConfig, folder: Path, cache: str) -> OrtEngine:
    folder.mkdir()
    tensor, opset = Weights(config), language.OPSETS[cache]
    with WeightFile(folder / "weights.data") as weights:
        g = Graph("language", weights, activations="float32", storage="float32", opset=opset)
        language.build_language(g, tensor, config, cache, language.token_head(tensor, config))
        g.save(folder / "language.onnx")
    inputs, outputs = (
        tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in side)
        for side in (g.inputs, g.outputs)
    )
    file = GraphFile(folder / "language.onnx", "float32", opset, cache, inputs, outputs)
    return OrtEngine(file, threads=1)


def read(engine: OrtEngine) -> np.ndarray:
    """Prompts with invisible tokens, kept and left out; one token, several, after going back, in a cache that grew."""
    rng, said = np.random.default_rng(2), []
    visible = np.ones(12, np.bool_)
    visible[5:9] = False

    def ask(context: Context, count: int, rows: list[int], seen: np.ndarray | None = None) -> None:
        said.append(context(rng.standard_normal((count, WIDTH)).astype(np.float32), rows, seen).hidden)

    for skips in (False, True):
        context = Context(engine, 40, skips)
        ask(context, 12, [0, 4, 11], visible)
        ask(context, 1, [0])
        ask(context, 5, [0, 1, 2, 3, 4])
        context.rewind(7, 60)
        ask(context, 3, [0, 2])
    return np.concatenate(said)


@pytest.mark.parametrize(("kind", "sizes"), [(kind, each) for kind, all_ in HEADS.items() for each in all_])
def test_spellings_agree(
    kind: str, sizes: tuple[int, int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, kv_heads, head_dim, rotary = sizes
    config = LanguageConfig(
        kind=kind,
        hidden=WIDTH,
        intermediate=INNER,
        layers=2,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=50,
        max_positions=64,
        norm_eps=1e-6,
        rope_theta=1e4,
        rotary_dims=rotary,
        activation="silu",
    )
    spelled_out = read(engine(config, tmp_path / "concat", "concat"))
    grouped = read(engine(config, tmp_path / "grouped", "in_place"))
    monkeypatch.setattr(language, "_Grouped", language._InPlace)
    standard = read(engine(config, tmp_path / "standard", "in_place"))
    # Sums in other orders; states reach 4, and were off by 2e-6 at most.
    np.testing.assert_allclose(grouped, spelled_out, rtol=0, atol=1e-5)
    np.testing.assert_allclose(standard, spelled_out, rtol=0, atol=1e-5)
