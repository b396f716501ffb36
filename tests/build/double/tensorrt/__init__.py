"""A double of TensorRT's builder: the calls that `pixelrt.build` makes, and no TensorRT behind them.

It reads operators from the ONNX file, refuses those named in DOUBLE_REFUSES, takes DOUBLE_SECONDS for a build in
twenty steps, and gives a plan that depends on graph, profiles and workspace alone. DOUBLE_VERSION is its version. What
a real builder accepts is shown by tests/build/test_tensorrt_rtx.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from pixelrt.onnx_file import _fields, operators

__version__ = os.environ.get("DOUBLE_VERSION", "10.16.0.72")


def input_names(content):
    """Field 7 of a model is its graph, 11 of a graph an input, 1 of that its name."""
    graph = next(value for field, value in _fields(memoryview(content)) if field == 7)
    inputs = [value for field, value in _fields(graph) if field == 11]
    return [bytes(next(v for f, v in _fields(value) if f == 1)).decode() for value in inputs]


class ILogger:
    VERBOSE, INFO, WARNING, ERROR = 4, 3, 2, 1

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class MemoryPoolType:
    WORKSPACE = "workspace"


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class Input:
    def __init__(self, name):
        self.name = name


class Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.content, self.num_layers, self.inputs = b"", 0, []

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]


class Error:
    def __init__(self, operator):
        self.operator = operator

    def desc(self):
        return f"Invalid Node - node of {self.operator}\nno {self.operator} here\nmore"

    def node_name(self):
        return f"some/{self.operator}"

    def node_operator(self):
        return self.operator


class OnnxParser:
    def __init__(self, network, log):
        self.network, self.errors = network, []

    def _refused(self, content):
        return sorted(operators(content) & set(os.environ.get("DOUBLE_REFUSES", "").split()))

    def parse(self, content, path):
        assert Path(path).read_bytes()[:1] == content[:1]
        self.errors = [Error(operator) for operator in self._refused(content)[:1]]
        self.network.content, self.network.num_layers = bytes(content), len(operators(content))
        self.network.inputs = [Input(name) for name in input_names(content)]
        return not self.errors

    def supports_model_v2(self, content, path):
        self.errors = [Error(operator) for operator in self._refused(content)]
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


class TimingCache:
    def __init__(self, known):
        self.known = known

    def serialize(self):
        return self.known + b"t"


class Config:
    def __init__(self):
        self.profiles, self.pools, self.progress_monitor, self.timing = [], {}, None, None
        self.builder_optimization_level = 3

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def create_timing_cache(self, known):
        return TimingCache(known)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.timing = cache
        return True

    def get_timing_cache(self):
        return self.timing


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)), (name, least, best, most)
        self.shapes[name] = (least, best, most)


class Plan(bytes):
    @property
    def nbytes(self):
        return len(self)


class Builder:
    def __init__(self, log):
        self.log = log

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        monitor, steps = config.progress_monitor, 20
        monitor.phase_start("Building engine", None, steps)
        for step in range(steps):
            time.sleep(float(os.environ.get("DOUBLE_SECONDS", "0")) / steps)
            assert monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")
        if "DOUBLE_CRASHES" in os.environ:
            os.abort()
        about = json.dumps([config.profiles, config.pools, config.builder_optimization_level]).encode()
        return Plan(hashlib.sha256(network.content + about).digest() * 2000)
