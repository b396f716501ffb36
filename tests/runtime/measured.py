"""Measurements with made-up times: what `pixelrt bench` would write of a machine whose noise is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from pixelrt.bench.record import Record
from pixelrt.bench.samples import STAGES

# ms of PixelLM's stages, of the first question; later ones take longer
TYPICAL = {"image": 3.0, "encode": 24.0, "prefill": 17.0, "decode": 31.0, "pixel_decoder": 14.0,
           "upsample": 5.0, "other": 0.4}  # fmt: skip


def made_up(
    seed: int,
    rounds: int = 20,
    questions: int = 4,
    slower: dict[str, float] | None = None,
    noise: float = 0.03,
    asked: list[dict[str, Any]] | None = None,
    **about: Any,
) -> Record:
    """slower: stage -> factor. noise: of each stage, log-normal, with 2 % of answers a third late.

    asked, about: replace the document's questions, and other parts of it.
    """
    rng = np.random.default_rng(seed)
    shape = (rounds, questions)
    columns = {}
    for stage, ms in TYPICAL.items():
        usual = ms * (1 + 0.4 * np.arange(questions)) * (slower or {}).get(stage, 1.0)
        late = np.where(rng.random(shape) < 0.02, 1.33, 1.0)
        columns[stage] = usual * late * np.exp(noise * rng.standard_normal(shape))
    total = sum(columns.values())
    columns["total"] = columns["first_mask"] = total
    columns["decode_token"] = columns["decode"] / 11
    columns["answer"] = total - columns["image"] - columns["encode"]
    number, place = np.indices(shape)
    assert set(TYPICAL) <= set(STAGES)
    whole = document(questions) | {"questions": asked or document(questions)["questions"]} | about
    flat = {name: values.ravel() for name, values in columns.items()}
    return Record(whole, number.ravel(), place.ravel(), flat)


def document(questions: int = 4) -> dict[str, Any]:
    """Everything but the samples."""
    state = {
        "load_average": 0.3,
        "temperatures_c": {"cpu": 45.5},
        "clocks_mhz": {"cpu": [2200.0, 2201.0]},
        "power_mode": "MAXN",
        "gpus": [],
    }
    return {
        "program": "pixelrt bench",
        "run": "r1",
        "started": "2026-11-21T12:00:00+00:00",
        "interleaved": 1,
        "settings": {"warmUp_ms": 200.0, "duration_s": 3.0, "iterations": 10, "max-new-tokens": 512},
        "machine": {
            "cpu": "A Processor", "cores": 8, "threads": None, "memory_bytes": 1 << 34, "module": None, "l4t": None,
            "gpus": [], "system": "Linux 6.1 x86_64",
        },
        "versions": {"pixelrt": "0.1.0", "onnxruntime": "1.31.1"},
        "before": state,
        "after": state,
        "throttling": {"seen": False, "signs": []},
        "memory": {"host_peak_bytes": 345_000_000, "device_bytes": None},
        "energy": {"joules_per_answer": None, "watts": None, "source": None, "readings": 0, "why_not": "no sensor"},
        "overhead": {"timer_us_per_call": 0.6, "timers": 1e-4, "sensors": 2e-4, "share": 3e-4},
        "bundle": {"name": "pixellm-tiny", "family": "pixellm", "sha256": "ab" * 32,
                   "precision": {"encoder": "fp32", "language": "fp32", "pixel_decoder": "fp32"}},
        "backend": "onnxruntime-cpu",
        "load_ms": 212.0,
        "first_answer_ms": 140.0,
        "throughput_per_s": 10.5,
        "forwards_per_answer": 9.25,
        "questions": [
            {"image": f"scene_{i}.png", "words": "Segment the red circle <script>.", "sha256": f"{i:064x}",
             "tokens": 12, "forwards": 9, "masks": 1, "answer_sha256": f"{i + 7:064x}"}
            for i in range(questions)
        ],
    }  # fmt: skip
