"""Our kernels inside of engines, as TensorRT plugins in their ahead-of-time form: PTX and launch, no code at run time.

`pixelrt::DeformAttn` travels as an ONNX function of standard operators, which every TensorRT inlines. For full TensorRT
from 10.9 `with_plugins` takes the function out and leaves a plugin's node, with the table of levels that the kernel
reads as one more input; `register` tells TensorRT what to launch for it. TensorRT-RTX has no plugins.

Kernel arguments are the inputs, then the extra arguments, then the output: as in deform_attn/kernel.cuh.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from pixelrt_kernels.deform_attn.launch import deform_launch
from pixelrt_kernels.deform_attn.reference import level_table

from pixelrt.onnx_file import as_varint, spans, varint
from pixelrt.tensorrt import TENSORRT, Library

DOMAIN, NAME = "pixelrt", "DeformAttn"
OPERATOR = f"{DOMAIN}::{NAME}"
SINCE = (10, 9)
INT32, AS_INT, AS_STRING = 6, 2, 3  # onnx.proto: TensorProto.INT32, AttributeProto.INT and STRING


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

    # TensorRT reads what is what from annotations, and its types are only known here.
    tensors = dict.fromkeys(("value", "levels", "locations", "weights"), trtp.TensorDesc)
    describe.__annotations__ = {**tensors, "return": trtp.TensorDesc}
    launched = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    launch.__annotations__ = {**tensors, "outputs": tuple[trtp.TensorDesc], "tactic": int, "return": launched}
    trtp.register(OPERATOR)(describe)
    trtp.aot_impl(OPERATOR)(launch)


# ---- the graph ----------------------------------------------------------------------------------------------


def with_plugins(content: bytes) -> bytes:
    """The ONNX file with plugin nodes in place of calls of the function, which is taken out."""
    parts = []
    for field, whole, value in spans(memoryview(content)):
        if field == 7 and value is not None:  # Model.graph
            parts.append(_field(7, _graph(value)))
        elif not (field == 25 and value is not None and _texts(value, 1, 10) == (NAME, DOMAIN)):  # functions
            parts.append(bytes(whole))
    return b"".join(parts)


def _graph(graph: memoryview) -> bytes:
    parts, tables = [], dict[str, bytes]()
    for field, whole, value in spans(graph):
        if field == 1 and value is not None and _texts(value, 4, 7) == (NAME, DOMAIN):  # Graph.node
            parts.append(_field(1, _node(value, tables)))
        else:
            parts.append(bytes(whole))
    return b"".join([*parts, *(_field(5, table) for table in tables.values())])  # Graph.initializer


def _node(node: memoryview, tables: dict[str, bytes]) -> bytes:
    """The node with the levels' table as its second input, and the attributes that TensorRT's parser looks for."""
    attributes = [value for field, _, value in spans(node) if field == 5 and value is not None]
    shapes = next(list(_ints(value)) for value in attributes if _texts(value, 1) == ("spatial_shapes",))
    name = "/".join(["pixelrt.levels", *map(str, shapes)])
    rows = level_table(list(zip(shapes[::2], shapes[1::2], strict=True)))
    dims = b"".join(_number(1, n) for n in rows.shape)
    tables[name] = (
        dims + _number(2, INT32) + _field(8, name.encode()) + _field(9, rows.astype("<i4").tobytes())
    )
    parts, inputs = [], 0
    for field, whole, _ in spans(node):
        if field == 1:  # Node.input
            inputs += 1
            parts.append(bytes(whole))
            if inputs == 1:
                parts.append(_field(1, name.encode()))
        elif field != 5:
            parts.append(bytes(whole))
    space = _field(1, b"plugin_namespace") + _field(4, DOMAIN.encode()) + _number(20, AS_STRING)
    version = _field(1, b"plugin_version") + _field(4, b"1") + _number(20, AS_STRING)
    ahead = _field(1, b"aot") + _number(3, 1) + _number(20, AS_INT)
    return b"".join([*parts, *(_field(5, attribute) for attribute in (space, version, ahead))])


def _ints(attribute: memoryview) -> Iterator[int]:
    """AttributeProto.ints, packed or not."""
    for field, whole, value in spans(attribute):
        if field == 8:
            at, end, of = (0, len(value), value) if value is not None else (1, len(whole), whole)
            while at < end:
                number, at = varint(of, at)
                yield number


def _texts(message: memoryview, *fields: int) -> tuple[str, ...]:
    found = {field: value for field, _, value in spans(message) if value is not None and field in fields}
    return tuple(bytes(found.get(field, b"")).decode(errors="replace") for field in fields)


def _field(number: int, content: bytes) -> bytes:
    return as_varint(number << 3 | 2) + as_varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return as_varint(field << 3) + as_varint(value)
