"""The ONNX file that TensorRT's parser gets where our kernels stand in for functions; see plugins.py.

A function of the domain `pixelrt` is taken out and its calls become plugins' nodes: the same inputs and outputs, and
the attributes that the parser looks for. Without the onnx package; onnx.proto's field numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from pixelrt_kernels.deform_attn.reference import level_table

from pixelrt.onnx_file import as_varint, spans, varint

DOMAIN = "pixelrt"
DEFORM, FUSE = "DeformAttn", "FuseScales"
NAMES = (DEFORM, FUSE)
INT32, AS_INT, AS_STRING = 6, 2, 3  # TensorProto.INT32, AttributeProto.INT and STRING


def with_plugins(content: bytes) -> bytes:
    """The ONNX file with plugin nodes in place of calls of our functions, which are taken out."""
    parts = []
    for field, whole, value in spans(memoryview(content)):
        if field == 7 and value is not None:  # Model.graph
            parts.append(_field(7, _graph(value)))
        elif not (field == 25 and value is not None and _ours(value, 1, 10)):  # Model.functions
            parts.append(bytes(whole))
    return b"".join(parts)


def _ours(message: memoryview, name: int, domain: int) -> str:
    """Name of the function that this is, or that this node calls; empty where it is none of ours."""
    called, of = _texts(message, name, domain)
    return called if of == DOMAIN and called in NAMES else ""


def _graph(graph: memoryview) -> bytes:
    parts, tables = [], dict[str, bytes]()
    for field, whole, value in spans(graph):
        called = _ours(value, 4, 7) if field == 1 and value is not None else ""  # Graph.node
        if called and value is not None:
            parts.append(_field(1, _node(value, _levels(value, tables) if called == DEFORM else None)))
        else:
            parts.append(bytes(whole))
    return b"".join([*parts, *(_field(5, table) for table in tables.values())])  # Graph.initializer


def _levels(node: memoryview, tables: dict[str, bytes]) -> str:
    """Name of the table of levels, which DeformAttn's kernel reads; added to `tables` as a tensor."""
    attributes = [value for field, _, value in spans(node) if field == 5 and value is not None]
    shapes = next(list(_ints(value)) for value in attributes if _texts(value, 1) == ("spatial_shapes",))
    name = "/".join(["pixelrt.levels", *map(str, shapes)])
    rows = level_table(list(zip(shapes[::2], shapes[1::2], strict=True)))
    dims = b"".join(_number(1, n) for n in rows.shape)
    tables[name] = (
        dims + _number(2, INT32) + _field(8, name.encode()) + _field(9, rows.astype("<i4").tobytes())
    )
    return name


def _node(node: memoryview, second: str | None) -> bytes:
    """The call as a plugin's node. second: of its inputs, put before those that follow the first."""
    parts, inputs = [], 0
    for field, whole, _ in spans(node):
        if field == 1:  # Node.input
            inputs += 1
            parts.append(bytes(whole))
            if inputs == 1 and second is not None:
                parts.append(_field(1, second.encode()))
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
