"""What benchmarks/peers stands on: weights that int4 does not change, times in turn, both sides doing the same."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("safetensors", reason="needs the export extra")
onnx = pytest.importorskip("onnx", reason="needs the export extra")

from pixelrt.engine_ort import IN_PLACE_SINCE, VERSION  # noqa: E402
from pixelrt_export.quantize.blocks import round_blocks  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from benchmarks.peers.decoders import Ours  # noqa: E402
from benchmarks.peers.grid import OUR_PEAK, blocks_of, on_grid  # noqa: E402
from benchmarks.peers.operators import Profiled, accuracy_levels, by_operator, optimised, table  # noqa: E402
from benchmarks.peers.procedure import load_reference, original  # noqa: E402
from benchmarks.peers.random_llama import Size, export_language, follower, write_llama  # noqa: E402
from benchmarks.peers.turns import in_turn, ratio, said  # noqa: E402


@pytest.mark.parametrize("peak", [-8, 7])
def test_int4_does_not_change_weights_on_the_grid(peak: int) -> None:
    drawn = np.random.default_rng(3).standard_normal((33, 96)).astype(np.float32)
    drawn[2, 32:64] = 0
    weight = on_grid(drawn, peak)
    assert weight.dtype == np.float16
    # Alike, but for one weight in 32, the largest, whose sign the grid may turn.
    assert np.corrcoef(weight.ravel(), drawn.ravel())[0, 1] > 0.75
    found = blocks_of(weight.T, peak)
    assert found.block == 32 and found.values.min() >= -8 and found.values.max() <= 7
    np.testing.assert_array_equal(found.dense(), weight.T)
    if peak == OUR_PEAK:  # an export rounds to nearest steps, with the scale that loses least
        np.testing.assert_array_equal(round_blocks(weight.T, 32).dense(), weight.T)


def test_onnxruntime_rounds_the_grid_to_itself() -> None:
    """Its rule: the largest weight of a block is -8 steps, with its sign."""
    quantizer = pytest.importorskip("onnxruntime.capi._pybind_state")
    weight = on_grid(np.random.default_rng(4).standard_normal((16, 64)), -8).T.astype(np.float32)
    packed, scales = np.zeros((16, 2, 16), np.uint8), np.zeros(16 * 2, np.float32)
    zeros = np.zeros((16, 1), np.uint8)
    quantizer.quantize_matmul_4bits(packed, np.ascontiguousarray(weight), scales, zeros, 32, 16, 64, True)
    steps = np.stack([packed & 15, packed >> 4], -1).reshape(16, 2, 32).astype(np.float32) - 8
    np.testing.assert_array_equal((steps * scales.reshape(16, 2, 1)).reshape(16, 64).T, weight)


def test_ways_take_turns_and_stop_in_time() -> None:
    called: list[str] = []

    def way(name: str, seconds: float) -> dict[str, float]:
        called.append(name)
        return {"answer": seconds}

    found = in_turn({"a": lambda: way("a", 3.0), "b": lambda: way("b", 2.0)}, rounds=3)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert found["a"] == [{"answer": 3.0}] * 3
    assert len(in_turn({"a": lambda: way("a", 1.0)}, rounds=3, minutes=0)["a"]) == 1
    assert str(ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])) == "2.00 (1.50 to 4.00)"
    assert said([0.001, 0.003, 0.002]) == "2.0 ms (1.0 to 3.0)"
    assert said([10.0, 12.0, 30.0]) == "12.0 s (10.0 to 30.0)"


def test_operators_of_a_profile() -> None:
    def event(kind: str, name: str, us: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"op_name": kind}}

    events = [
        event("MatMul", "a", 900),
        event("MatMul", "b", 2000),
        {"cat": "Session", "name": "x", "dur": 1},
    ]
    events += [event("MatMul", "a", 100), event("MatMul", "a", 300), event("Add", "c", 1000)]
    found = by_operator(events, times=1)
    assert found["MatMul"] == (4, pytest.approx(2.3)) and found["Add"] == (1, 1.0)
    assert "| MatMul | 4, 2.300 ms | – |" in table({"one": found, "other": {}})


@pytest.mark.skipif(
    tuple(int(part) for part in VERSION.split(".")[:2]) < IN_PLACE_SINCE, reason="ONNX Runtime is too old"
)
def test_our_graph_says_what_the_random_llama_was_made_to_say(tmp_path: Path) -> None:
    size = Size(128, 1, vocab=96, head_dim=64)
    checkpoint = write_llama(tmp_path / "llama", size)
    file = export_language(checkpoint, tmp_path / "ours", rounded_head=True)
    embeddings = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    tokens, logits, times = Ours(file, embeddings, 1, time.perf_counter).answer([5, 9, 60], 5)
    follows, said_next = follower(size.vocab), 60
    for token in tokens:
        assert token == follows[said_next]
        said_next = token
    assert logits.shape == (size.vocab,) and times.keys() == {"prefill", "token"}
    # Seven linear layers and the head; 4, activations in int8, is what onnxruntime-genai's builder asks for on a CPU.
    assert accuracy_levels(optimised(file.path, tmp_path)) == {4: 8}
    assert Profiled(file.path, size.head_dim, 1, tmp_path).run(past=4, new=2, times=2)["MatMulNBits"][0] == 8


def test_sampled_steps_make_the_masks_of_the_whole_procedure(
    golden_pixellm: Path, golden_checkpoint_b: Path
) -> None:
    meta = json.loads((golden_pixellm / "golden.json").read_text())
    golden = load_file(golden_pixellm / "case_one_target_eos.safetensors")
    image = np.load(golden_pixellm / "preprocess.npz")[
        f"{meta['cases']['one_target_eos']['image']}.rgb_uint8"
    ]
    prompt = golden["input_ids"][0].tolist()
    answer = golden["output_ids"][0].tolist()[len(prompt) :]
    reference = load_reference(golden_checkpoint_b, meta["seg_token_idx"], "float32")
    times, agree, drawn = original(reference, image, prompt, answer, steps=2)
    assert agree == [True, True]
    assert not ((drawn.masks.numpy() > 0) != (golden["pred_masks"] > 0)).any()
    assert times["answer"] == pytest.approx(times["step"] * len(answer) + times["rest"])
