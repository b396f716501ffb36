"""Each kernel on this machine's GPU: time, bytes, share of the measured copy bandwidth, and torch's own operators.

    python -m benchmarks.gpu_kernels        prints a table; `make gpu-check` writes it

Times are medians of CUDA events around single launches, ours and torch's in turn, over several sets of buffers, so
that inputs do not stay in the cache. Bytes: every input read once, every output written once.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from pixelrt_export.reference.deform_attn import deform_attn as torch_deform_attn
from pixelrt_kernels.deform_attn.launch import DeformLaunch
from pixelrt_kernels.fuse_scales.launch import FuseLaunch
from pixelrt_kernels.upsample_mask.launch import LabelLaunch, MaskLaunch

from benchmarks.gpu_device import gpu_device
from benchmarks.upsample_mask import masks_of, torch_masks

ROUNDS, SETS = 30, 4
LEVELS = [(32, 32), (64, 64), (128, 128)]  # PSALM's, 21,504 positions
MASKS = (1024, (576, 1024), (1080, 1920))

Call = Callable[[], Any]


def elapsed_ms(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def timed(ours: list[Call], theirs: list[Call]) -> dict[str, float]:
    """Medians and ranges in ms, in turn over the sets; three rounds to warm up."""
    times: dict[str, list[float]] = {"kernel": [], "torch": []}
    for i in range(ROUNDS + 3):
        for name, calls in (("kernel", ours), ("torch", theirs)):
            spent = elapsed_ms(calls[i % len(calls)])
            if i >= 3:
                times[name].append(spent)
    out: dict[str, float] = {}
    for name, each in times.items():
        out |= {
            f"{name}_ms": statistics.median(each),
            f"{name}_ms_min": min(each),
            f"{name}_ms_max": max(each),
        }
    return out | {"torch_over_kernel": out["torch_ms"] / out["kernel_ms"]}


def copy_gb_s() -> float:
    """Reading and writing 2 GiB."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    spent = [elapsed_ms(lambda: target.copy_(source)) for _ in range(13)][3:]
    return 2 * source.nbytes / statistics.median(spent) / 1e6


def mask_case(device: Any, kind: str) -> tuple[dict[str, float], int]:
    logits = [masks_of(kind, 100, seed) for seed in range(2)]
    launches = [MaskLaunch.of(device, x, *MASKS) for x in logits]
    tensors = [
        torch.from_numpy(x[:25]).cuda() for x in logits
    ]  # a quarter at a time: 100 take 4 GB each step

    def original(x: torch.Tensor) -> None:
        for _ in range(4):
            torch_masks(x, *MASKS)

    height, width = MASKS[2]
    size = logits[0].nbytes + 100 * (height * width // 8 + 20)
    return timed(list(launches), [lambda x=x: original(x) for x in tensors]), size


def label_case(device: Any) -> tuple[dict[str, float], int]:
    logits = masks_of("noise", 20, 0)
    scores = np.linspace(0.81, 0.99, 20, dtype=np.float32)
    launch = LabelLaunch.of(device, logits, scores, *MASKS)
    x, weights = torch.from_numpy(logits).cuda(), torch.from_numpy(scores).cuda()

    def original() -> None:
        square, content, size = MASKS
        y = torch.nn.functional.interpolate(x[:, None], (square, square), mode="bilinear")
        y = torch.nn.functional.interpolate(y[..., : content[0], : content[1]], size, mode="bilinear")
        p = y[:, 0].sigmoid()
        owner = (weights[:, None, None] * p).argmax(0)
        for n in range(20):
            ((owner == n).sum(), (p[n] >= 0.5).sum(), ((owner == n) & (p[n] >= 0.5)).sum())

    return timed([launch], [original]), logits.nbytes + 2 * MASKS[2][0] * MASKS[2][1]


def fuse_case(device: Any, of: Any) -> tuple[dict[str, float], int]:
    """64 targets at PixelLM's real second scale: 64 x 64 positions of 256 channels."""
    rng = np.random.default_rng(0)
    launches, tensors = [], []
    for _ in range(SETS):
        previous = rng.normal(0, 5, (64, 4096)).astype(np.float32)
        features, dense = rng.normal(0, 1, (4096, 256)).astype(of), rng.normal(0, 1, 256).astype(of)
        launches.append(FuseLaunch.of(device, previous, features, dense))
        tensors.append([torch.from_numpy(x).cuda() for x in (previous, features, dense)])
    size = previous.nbytes + features.nbytes + dense.nbytes + 64 * features.nbytes

    def original(previous: torch.Tensor, features: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return (previous.sigmoid() + 1).to(features.dtype)[:, :, None] * features + dense

    return timed(list(launches), [lambda t=t: original(*t) for t in tensors]), size


def deform_case(device: Any, of: Any) -> tuple[dict[str, float], int]:
    """PSALM's real shape: 21,504 queries, 8 heads of 32, 3 levels, 4 points; each query looks around itself."""
    rng = np.random.default_rng(0)
    count = sum(h * w for h, w in LEVELS)
    centres = np.concatenate(
        [
            np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2)
            for h, w in LEVELS
        ]
    )
    launches, tensors = [], []
    for _ in range(SETS):
        value = rng.normal(0, 1, (1, count, 8, 32)).astype(of)
        offsets = rng.normal(0, 0.03, (1, count, 8, 3, 4, 2))
        locations = (centres[None, :, None, None, None] + offsets).astype(np.float32)
        weights = rng.random((1, count, 8, 3, 4))
        weights = (weights / weights.sum((3, 4), keepdims=True)).astype(of)
        launches.append(DeformLaunch.of(device, value, LEVELS, locations, weights))
        tensors.append([torch.from_numpy(x).cuda() for x in (value, locations.astype(of), weights)])
    size = 2 * value.nbytes + locations.nbytes + weights.nbytes
    calls = [lambda t=t: torch_deform_attn(t[0], LEVELS, t[1], t[2]) for t in tensors]
    return timed(list(launches), calls), size


def _on_stream_of(device: Any) -> AbstractContextManager[Any]:
    """Have torch work, and time, on the stream that the kernels run on; CuPy's is torch's already."""
    stream = getattr(device, "stream", None)
    return nullcontext() if stream is None else torch.cuda.stream(torch.cuda.ExternalStream(stream.handle))


def measure() -> dict[str, Any]:
    """Raises LookupError: no GPU to run on."""
    if not torch.cuda.is_available():
        raise LookupError("torch has no CUDA here")
    with gpu_device() as device, _on_stream_of(device):
        bandwidth = copy_gb_s()
        cases: dict[str, tuple[dict[str, float], int]] = {
            "upsample_mask, 100 objects 256^2 to 1080 x 1920": mask_case(device, "objects"),
            "upsample_mask, 100 of noise": mask_case(device, "noise"),
            "label_map, 20 of noise": label_case(device),
        }
        for of, name in ((np.float32, "fp32"), (np.float16, "fp16")):
            cases[f"fuse_scales {name}, 64 x 4096 x 256"] = fuse_case(device, of)
            cases[f"deform_attn {name}, 21,504 queries"] = deform_case(device, of)
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gb_s": round(bandwidth, 1),
        "kernels": {},
    }
    for name, (times, size) in cases.items():
        rate = size / times["kernel_ms"] / 1e6
        record["kernels"][name] = {
            **{key: round(value, 4) for key, value in times.items()},
            "bytes": size,
            "gb_s": round(rate, 1),
            "share_of_copy": round(rate / bandwidth, 3),
        }
    return record


def print_table(record: dict[str, Any]) -> None:
    print(f"{record['gpu']}, torch {record['torch']}; copying {record['copy_gb_s']:.0f} GB/s")
    print(f"{'':48s} {'ms':>9s} {'torch ms':>9s} {'ratio':>6s} {'GB/s':>7s} {'of copy':>7s}")
    for name, one in record["kernels"].items():
        print(
            f"{name:48s} {one['kernel_ms']:9.3f} {one['torch_ms']:9.3f} {one['torch_over_kernel']:6.1f}"
            f" {one['gb_s']:7.0f} {one['share_of_copy']:7.1%}"
        )


if __name__ == "__main__":
    found = measure()
    print_table(found)
    print(json.dumps(found))
