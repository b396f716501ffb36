"""What ONNX Runtime makes of a language graph: nodes after its optimiser, and time by operator.

Works on our graphs and on those of onnxruntime-genai's model builder; both caches are buffers that are written in
place.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.peers.turns import markdown

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def optimised(path: Path, scratch: Path) -> onnx.ModelProto:
    """The graph that runs, without its weights."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimised.data"
    )
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(scratch / "optimised.onnx", load_external_data=False)
    for name in ("optimised.onnx", "optimised.data"):
        (scratch / name).unlink(missing_ok=True)
    return model


def accuracy_levels(model: onnx.ModelProto) -> dict[int, int]:
    """`accuracy_level` of MatMulNBits (4: activations in int8; 0 and 1: in float32) -> how many nodes have it."""
    levels = (
        {a.name: a.i for a in node.attribute}.get("accuracy_level", 0)
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    )
    return dict(Counter(levels))


class Profiled:
    """A session that writes down when each node runs."""

    def __init__(self, path: Path, head_dim: int, threads: int, scratch: Path) -> None:
        self._head_dim = head_dim
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, str(scratch / "profile")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, past: int, new: int, times: int) -> dict[str, tuple[float, float]]:
        """Read `new` tokens behind `past` others, so many times; ends the session. See `by_operator`."""
        inputs = self._inputs(past, new)
        for _ in range(times):
            binding = self._session.io_binding()
            for name, value in inputs.items():
                binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            for output in self._session.get_outputs():
                buffer = inputs.get(output.name.replace("present.", "past."))
                if buffer is None:
                    buffer = inputs.get(output.name.replace("present.", "past_key_values."))
                if buffer is None:
                    binding.bind_output(output.name, "cpu")
                else:
                    binding.bind_output(output.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self._session.run_with_iobinding(binding)
        file = Path(self._session.end_profiling())
        events = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return by_operator(events, times)

    def _inputs(self, past: int, new: int) -> dict[str, np.ndarray]:
        total, rng = past + new, np.random.default_rng(0)
        causal = np.arange(total)[None] <= np.arange(past, total)[:, None]
        known: dict[str, Any] = {
            "input_ids": rng.integers(3, 500, (1, new)),
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(past, total)[None],
            "attn_mask": causal[None, None],
            "write_indices": [past],
            "logit_rows": [new - 1],
        }
        found = {}
        for each in self._session.get_inputs():
            dtype, shape = DTYPES[each.type], each.shape
            if each.name in known:
                value = np.asarray(known[each.name])
            elif each.name == "inputs_embeds":
                value = rng.standard_normal((1, new, shape[2]))
            else:  # a cache (1, heads, tokens, width); genai's graph leaves out the width
                width = shape[3] if isinstance(shape[3], int) else self._head_dim
                value = 0.1 * rng.standard_normal((1, shape[1], total, width))
            found[each.name] = np.ascontiguousarray(value, dtype)
        return found


def by_operator(events: list[dict[str, Any]], times: int) -> dict[str, tuple[float, float]]:
    """Operator -> nodes a run, ms a run: of each node the median of its runs."""
    nodes: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    found: dict[str, tuple[float, float]] = {}
    for (kind, _), each in nodes.items():
        count, spent = found.get(kind, (0.0, 0.0))
        found[kind] = count + len(each) / times, spent + statistics.median(each)
    return found


def table(sides: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Markdown: operators below one another, sides beside one another; the most nodes first."""
    kinds = sorted({kind for side in sides.values() for kind in side})
    most = {kind: max(side.get(kind, (0, 0))[0] for side in sides.values()) for kind in kinds}
    rows = []
    for kind in sorted(kinds, key=lambda kind: -most[kind]):
        found = [side.get(kind) for side in sides.values()]
        rows.append([kind, *("–" if f is None else f"{f[0]:g}, {f[1]:.3f} ms" for f in found)])
    totals = [[sum(f[i] for f in side.values()) for i in (0, 1)] for side in sides.values()]
    rows.append(["all", *(f"{count:g}, {spent:.3f} ms" for count, spent in totals)])
    return markdown(["operator", *sides], rows)
