"""Before the long part: what a build will need, what there is, and a verdict that can be read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelrt.build.parts import Part
from pixelrt.build.targets import Target

# The most that TensorRT-RTX's builder took: 4.4 times the weights (Swin-B at 1024 px, fp16; CLIP-L and LLaMA in int4:
# 3.3 times), and 0.3 GB for any graph.
PEAK, BASE = 4.5, 300 << 20
KERNELS = 16 << 20  # of an engine beside its weights; 7 to 12 MB seen
CONTEXT = 512 << 20  # CUDA's own, and activations
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """One line of the verdict. fatal: the build cannot succeed."""

    what: str
    words: str
    good: bool
    fatal: bool = False

    def line(self) -> str:
        return f"{self.what:<14} {self.words:<60} {'ok' if self.good else 'NO' if self.fatal else 'careful'}"


def peak_of(part: Part) -> int:
    """Bytes of memory that building this part is expected to take at most."""
    return int(BASE + PEAK * part.weights)


def examine(
    parts: Sequence[Part], target: Target, folder: Path, workspace: int | None, available: int | None
) -> list[Finding]:
    """Disk and memory. available: bytes of memory that are free here, None where it is not known."""
    found = [_disk(parts, folder)]
    if parts:
        largest = max(parts, key=peak_of)
        need = peak_of(largest) + (workspace or 0 if target.shared else 0)
        words = f"about {_size(need)} to build {largest.graph}"
        if available is not None:
            words += f", {_size(available)} free"
        good = available is None or need <= available
        found.append(Finding("memory", words, good, not good))
    if target.memory is not None:
        need = sum(part.weights + part.cache for part in parts) + CONTEXT
        good = need <= target.memory * (0.75 if target.shared else 0.95)  # the system needs its share
        found.append(
            Finding("to run", f"about {_size(need)} of {target.name}'s {_size(target.memory)}", good)
        )
    unusual = sorted({part.precision for part in parts} - set(target.precisions))
    if unusual:
        better = " or ".join(target.precisions)
        found.append(
            Finding("precision", f"{', '.join(unusual)}; {target.name} is faster in {better}", False)
        )
    return found


def _disk(parts: Sequence[Part], folder: Path) -> Finding:
    need = sum(part.weights + KERNELS for part in parts)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    return Finding("disk", f"about {_size(need)}, {_size(free)} free", need <= free, need > free)


def available_memory(root: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that this process could still get: of the machine, or less where a container is limited (cgroup 2)."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
