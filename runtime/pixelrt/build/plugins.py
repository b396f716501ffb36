"""Our kernels inside of engines, as TensorRT plugins in their ahead-of-time form: PTX and launch, no code at run time.

`pixelrt::DeformAttn` and `pixelrt::FuseScales` travel as ONNX functions of standard operators, which every TensorRT
inlines. For full TensorRT from 10.9 `plugin_nodes.with_plugins` takes the functions out and leaves plugins' nodes;
`register` tells TensorRT what to launch for them. TensorRT-RTX has no plugins.

Kernel arguments are the inputs, then the extra arguments, then the output: as in each kernel.cuh.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pixelrt_kernels.deform_attn.launch import deform_launch
from pixelrt_kernels.fuse_scales.launch import fuse_launch

from pixelrt.build.plugin_nodes import DEFORM, DOMAIN, FUSE, NAMES
from pixelrt.tensorrt import TENSORRT, Library

OPERATORS = frozenset(f"{DOMAIN}::{name}" for name in NAMES)
SINCE = (10, 9)


def possible(library: Library) -> bool:
    """Whether this TensorRT takes plugins in their ahead-of-time form."""
    if library.flavour != TENSORRT or library.number < SINCE:
        return False
    try:
        return hasattr(importlib.import_module(f"{library.module.__name__}.plugin"), "aot_impl")
    except ImportError:
        return False


def register(library: Library, ptx: bytes) -> None:
    """Once in a process. ptx: of device.cu, see `pixelrt_kernels.build.ptx`."""
    trt = library.module
    trtp: Any = importlib.import_module(f"{trt.__name__}.plugin")
    _register_deform_attn(trt, trtp, ptx)
    _register_fuse_scales(trt, trtp, ptx)


def _register_deform_attn(trt: Any, trtp: Any, ptx: bytes) -> None:
    def describe(value: Any, levels: Any, locations: Any, weights: Any) -> Any:
        """(B, N, M, d), (L, 3), (B, Q, M, L, P, 2), (B, Q, M, L, P) -> (B, Q, M * d)"""
        out = value.like()
        of, at = value.shape_expr, locations.shape_expr
        out.shape_expr = trtp.ShapeExprs.from_tuple((of[0], at[1], of[2] * of[3]))
        return out

    def launch(value: Any, levels: Any, locations: Any, weights: Any, outputs: Any, tactic: int) -> Any:
        # All sizes but the batch are the same for every picture.
        positions, heads, width = list(value.shape)[1:]
        queries, _, count, points = list(locations.shape)[1:5]
        plan = deform_launch(
            value.dtype == trt.DataType.HALF, positions, queries, heads, width, count, points
        )
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = plan.blocks, heads, value.shape_expr[0]
        params.block_x, params.shared_mem = plan.threads, plan.shared
        extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in plan.arguments])
        return plan.kernel, ptx, params, extra

    _register(trtp, DEFORM, ("value", "levels", "locations", "weights"), describe, launch)


def _register_fuse_scales(trt: Any, trtp: Any, ptx: bytes) -> None:
    def describe(previous: Any, features: Any, dense: Any) -> Any:
        """(N, P, 1) float32, (1, P, C), (1, 1, C) -> (N, P, C)"""
        out = features.like()
        of, at = features.shape_expr, previous.shape_expr
        out.shape_expr = trtp.ShapeExprs.from_tuple((at[0], of[1], of[2]))
        return out

    def launch(previous: Any, features: Any, dense: Any, outputs: Any, tactic: int) -> Any:
        # Only the number of targets differs from one answer to the next.
        positions, channels = list(features.shape)[1:]
        kernel, blocks, threads = fuse_launch(features.dtype == trt.DataType.HALF, positions, channels)
        params = trtp.KernelLaunchParams()
        params.grid_x, params.block_x, params.shared_mem = blocks, threads, 0
        arguments = (previous.shape_expr[0], positions, channels)
        extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in arguments])
        return kernel, ptx, params, extra

    _register(trtp, FUSE, ("previous", "features", "dense"), describe, launch)


def _register(
    trtp: Any, name: str, inputs: tuple[str, ...], describe: Callable[..., Any], launch: Callable[..., Any]
) -> None:
    # TensorRT reads what is what from annotations, and its types are only known here.
    tensors = dict.fromkeys(inputs, trtp.TensorDesc)
    describe.__annotations__ = {**tensors, "return": trtp.TensorDesc}
    launched = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    launch.__annotations__ = {**tensors, "outputs": tuple[trtp.TensorDesc], "tactic": int, "return": launched}
    trtp.register(f"{DOMAIN}::{name}")(describe)
    trtp.aot_impl(f"{DOMAIN}::{name}")(launch)
