"""The host library against torch on the CPU: 100 masks of 256 x 256 to 1080 x 1920, with scores and boxes.

    python -m benchmarks.upsample_mask [--count 100] [--rounds 7] [--threads 2]

Both do the original's chain (to 1024, crop, to the picture) on the same threads, in turn, and must agree in every
pixel; times are medians. Torch runs as the original does, all masks at once, and also mask by mask, where it needs
less memory. Peak memory is that of a process of its own, above what it held before. Writes results/upsample-mask.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pixelrt_kernels.library import HostLibrary, host_library
from pixelrt_kernels.upsample_mask import host, reference

RESULT = Path(__file__).parent / "results" / "upsample-mask.json"
SIZES = (1024, (576, 1024), (1080, 1920))
WAYS = ("host library", "torch, all at once", "torch, mask by mask")


def masks_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """(count, 256, 256) logits. objects: a soft disc each, 3 % of the picture; noise: half of all pixels are inside."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.normal(0, 3, (count, 256, 256)).astype(np.float32)
    y, x = np.mgrid[:256, :256]
    rows, columns, radius = (
        rng.uniform(10, 134, count),
        rng.uniform(10, 246, count),
        rng.uniform(8, 35, count),
    )
    planes = [(r - np.hypot(y - b, x - a)) / 2 for a, b, r in zip(columns, rows, radius, strict=True)]
    return (np.stack(planes) + rng.normal(0, 0.3, (count, 256, 256))).astype(np.float32)


def torch_masks(x: torch.Tensor, square: int, content: tuple[int, int], original: tuple[int, int]) -> tuple:
    """Masks (N, H, W), scores (N,) and boxes (N, 4), as PyTorch code makes them."""
    interpolate = torch.nn.functional.interpolate
    y = interpolate(x[:, None], (square, square), mode="bilinear", align_corners=False)
    y = interpolate(y[..., : content[0], : content[1]], original, mode="bilinear", align_corners=False)
    logits = y[:, 0]
    masks = logits > 0
    scores = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    rows, columns = masks.any(2).int(), masks.any(1).int()
    found = rows.any(1)
    ends = [
        columns.argmax(1),
        rows.argmax(1),
        columns.shape[1] - columns.flip(1).argmax(1),
        rows.shape[1] - rows.flip(1).argmax(1),
    ]
    return masks, scores, torch.stack(ends, 1) * found[:, None]


def way(name: str, library: HostLibrary, logits: np.ndarray, threads: int) -> Callable[[], tuple]:
    tensor = torch.from_numpy(logits)
    if name == WAYS[0]:
        return lambda: host.upsample_bits(library, logits, *SIZES, threads=threads)
    if name == WAYS[1]:
        return lambda: torch_masks(tensor, *SIZES)

    def one_by_one() -> tuple:
        parts = [torch_masks(tensor[n : n + 1], *SIZES) for n in range(len(tensor))]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    return one_by_one


def check(library: HostLibrary, logits: np.ndarray, threads: int) -> int:
    """Pixels that differ from torch's; scores and boxes must agree, and all with the specification."""
    bits, scores, boxes = way(WAYS[0], library, logits, threads)()
    masks, wanted, wanted_boxes = (x.numpy() for x in torch_masks(torch.from_numpy(logits), *SIZES))
    got = np.unpackbits(bits, axis=2, count=SIZES[2][1]).astype(bool)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=2e-6)  # torch sums in float32
    different = int((got != masks).sum())
    assert different or np.array_equal(boxes, wanted_boxes)
    assert np.array_equal(got[:2], reference.upsample_mask(logits[:2], *SIZES)[0])
    return different


def peak_bytes(name: str, kind: str, count: int, threads: int, answer: Any) -> None:
    """In a process of its own: how far one call raises the peak."""
    torch.set_num_threads(threads)
    library = host_library()
    assert library is not None
    call = way(name, library, masks_of(kind, count), threads)
    way(name, library, masks_of(kind, 1), threads)()  # threads and caches exist before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed already would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    before = status_bytes("VmHWM")
    held = call()
    answer.send(status_bytes("VmHWM") - before)
    del held


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}")


def measured_peak(name: str, kind: str, count: int, threads: int) -> int:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=peak_bytes, args=(name, kind, count, threads, sending))
    process.start()
    found = int(receiving.recv())
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    library = host_library()
    if library is None:
        raise SystemExit("The host library is not built: run make kernels.")
    torch.set_num_threads(asked.threads)
    record: dict[str, Any] = {
        "processor": processor(),
        "threads": asked.threads,
        "instruction_set": ("baseline", "AVX2", "AVX-512")[library.levels[-1]],
        "torch": torch.__version__,
        "masks": asked.count,
        "sizes": "256 x 256 to 1080 x 1920 by way of 1024, cropped to 576 x 1024",
        "rounds": asked.rounds,
        "kinds": {},
    }
    for kind in ("objects", "noise"):
        logits = masks_of(kind, asked.count)
        different = check(library, logits, asked.threads)
        calls = {name: way(name, library, logits, asked.threads) for name in WAYS}
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(asked.rounds):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - began))
        peaks = {name: measured_peak(name, kind, asked.count, asked.threads) for name in WAYS}
        record["kinds"][kind] = {"pixels_different": different, "ways": {}}
        print(f"{kind}: {different} pixels differ from torch's")
        for name in WAYS:
            ratios = [t / ours for t, ours in zip(times[name], times[WAYS[0]], strict=True)]
            one = {
                "ms": round(statistics.median(times[name]), 1),
                "ms_range": [round(min(times[name]), 1), round(max(times[name]), 1)],
                "times_as_long": round(statistics.median(ratios), 2),
                "times_as_long_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "peak_mb": round(peaks[name] / 1e6, 1),
                "times_the_memory": round(peaks[name] / peaks[WAYS[0]], 1),
            }
            record["kinds"][kind]["ways"][name] = one
            print(
                f"  {name:20s} {one['ms']:9.1f} ms ({one['ms_range'][0]} to {one['ms_range'][1]}),"
                f" {one['times_as_long']:6.1f} times as long, peak {one['peak_mb']:8.1f} MB"
            )
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT.name}")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


if __name__ == "__main__":
    main()
