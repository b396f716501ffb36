"""One graph to one engine, in a process of its own: `python -m pixelrt.build.worker`.

TensorRT keeps memory after a build, cannot always be interrupted, and ends the process on some errors; here that
costs one graph. The job comes as JSON on stdin. Each line on stdout is a JSON object: {"part": of the work done,
"phase": name}, {"log": text} and at last {"done": {...}} or {"refused": [sentences]}.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt_kernels.build import ptx

from pixelrt.build import plugins
from pixelrt.build.plugin_nodes import with_plugins
from pixelrt.onnx_file import with_size
from pixelrt.tensorrt import Library, open_library

PR_SET_PDEATHSIG = 1  # prctl.h
Say = Callable[[dict[str, Any]], None]
Profiles = dict[str, dict[str, tuple[list[int], list[int], list[int]]]]


@dataclass(frozen=True)
class Job:
    """onnx: file of the graph. engine: where the engine goes, None to look only whether TensorRT takes the graph.

    workspace: bytes. level: of effort, 0 to 5; None is TensorRT's own choice. timing: its cache, read and written.
    plugins: put our kernels in place of their functions.
    """

    flavour: str
    architecture: str
    onnx: str
    engine: str | None
    cache_length: int | None
    profiles: Profiles
    workspace: int | None = None
    level: int | None = None
    timing: str | None = None
    timing_out: str | None = None
    plugins: bool = False


def main() -> int:
    _die_with_parent()
    # stdout is for our lines alone: what a library prints there goes to stderr.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")

    job = Job(**json.load(sys.stdin))
    say(run(job, open_library(job.flavour), say))
    return 0


def _die_with_parent() -> None:
    """A builder whose parent was killed would go on for minutes, for nothing."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run(job: Job, library: Library, say: Say) -> dict[str, Any]:
    """The last line. The engine lies at job.engine, whole and flushed, before it is said."""
    trt = library.module
    log = _logger(trt, say)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    content = Path(job.onnx).read_bytes()
    if job.cache_length is not None:
        content = with_size(content, "M", job.cache_length)
    if job.plugins:
        plugins.register(library, ptx())
        content = with_plugins(content)
    if not parser.parse(content, job.onnx):
        return {"refused": _refusals(trt, log, network, builder, content, job)}
    about = {"layers": network.num_layers}
    if job.engine is None:
        return {"done": about}
    config = builder.create_builder_config()
    library.aim(config, job.architecture)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.level is not None:
        config.builder_optimization_level = job.level
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    for ranges in job.profiles.values():
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in ranges.items():
            if name in names:  # TensorRT drops an input that nothing reads
                profile.set_shape(name, least, best, most)
        config.add_optimization_profile(profile)
    if library.timing:
        _use_timing(config, job)
    config.progress_monitor = monitor = _monitor(trt, say)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"refused": log.errors or ["it gave no reason"]}
    with Path(job.engine).open("wb") as stream:
        stream.write(plan)
        stream.flush()
        os.fsync(stream.fileno())
    if library.timing:
        _keep_timing(config, job)
    del monitor  # TensorRT does not hold it
    return {"done": {**about, "bytes": plan.nbytes, "peak": _peak()}}


def _peak() -> int:
    """Bytes of memory that this process held at most. getrusage also counts the parent's at the time of the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _refusals(trt: Any, log: Any, network: Any, builder: Any, content: bytes, job: Job) -> list[str]:
    """Every node that the parser does not take, by name, operator and reason; the parser itself stops at the first."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parser.supports_model_v2(content, job.onnx)
    found: dict[str, str] = {}
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        words = error.desc().partition("\n")
        reason = (words[2] if words[0].startswith("Invalid Node") else words[0]).partition("\n")[0]
        found.setdefault(f"{error.node_operator()} ({error.node_name()})", reason)
    return [f"{node}: {reason}" for node, reason in found.items()] or log.errors or ["it gave no reason"]


def _use_timing(config: Any, job: Job) -> None:
    """Start from what earlier builds measured; a cache of another version or GPU is left alone."""
    known = b""
    if job.timing is not None and Path(job.timing).is_file():
        known = Path(job.timing).read_bytes()
    if not (known and config.set_timing_cache(config.create_timing_cache(known), False)):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing(config: Any, job: Job) -> None:
    cache = config.get_timing_cache()
    if job.timing_out is not None and cache is not None:
        Path(job.timing_out).write_bytes(bytes(cache.serialize()))


def _logger(trt: Any, say: Say) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if (
                severity <= trt.ILogger.ERROR and "cudaError" not in text
            ):  # no driver here, which RTX does without
                self.errors.append(text.partition("\n")[0])
            if severity <= trt.ILogger.WARNING:
                say({"log": text})

    return Log()


def _monitor(trt: Any, say: Say) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases lie in one another; a phase's part of the whole is its steps done, and its inner phase's share."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, Phase] = {}
            self.last = -1.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = Phase(parent, max(1, steps))

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                self.phases[name] = dataclasses.replace(self.phases[name], done=step + 1)
                part = part_done(self.phases)
                if part >= self.last + 0.005:
                    self.last = part
                    say({"part": part, "phase": name})
            return True  # go on

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

    return Monitor()


@dataclass(frozen=True)
class Phase:
    parent: str | None
    steps: int
    done: int = 0


def part_done(phases: dict[str, Phase]) -> float:
    """0..1 of the outermost phase: (done + part of the phase inside it) / steps, all the way in."""

    def part(parent: str | None) -> float:
        inner = [(name, phase) for name, phase in phases.items() if phase.parent == parent]
        return max(
            (min(1.0, (p.done + part(name) * (p.done < p.steps)) / p.steps) for name, p in inner), default=0.0
        )

    roots = {phase.parent for phase in phases.values()} - phases.keys()
    return max((part(root) for root in roots), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
