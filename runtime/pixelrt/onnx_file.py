"""What an ONNX file says of itself, without the onnx package: the files it reads, its operators, a size to set.

ONNX Runtime before 1.24 follows an external-data path wherever it leads, so a bundle is checked here first.
Source: onnx.proto (message and field numbers), protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator

# message -> field number -> message, for every way down to a tensor that may lie outside the file
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
# The same for every way down to a dimension of the graph's inputs, outputs and values.
SHAPES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph"},
    "Graph": {11: "Value", 12: "Value", 13: "Value"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
}
FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes
DEEPEST = 100  # messages in messages, protobuf's own limit


def external_locations(content: bytes) -> set[str]:
    """The `location` of every external tensor.

    Raises ValueError where the bytes are no protobuf, or are one that readers could understand differently.
    """
    return set(_locations(memoryview(content), "Model", 1))


def external_bytes(content: bytes) -> int:
    """How many bytes of weights the file names outside itself, each place once."""
    places: dict[tuple[str, int], int] = {}
    for tensor in _tensors(memoryview(content), "Model", 1):
        entries = dict(tensor)
        place = entries.get(b"location", b"").decode(errors="replace"), int(entries.get(b"offset", b"0"))
        places[place] = int(entries.get(b"length", b"0"))
    return sum(places.values())


def operators(content: bytes) -> set[str]:
    """`domain::Name` of every operator of the graph and of its functions; no domain is ONNX's own."""
    found: set[str] = set()
    for field, model in _fields(memoryview(content)):
        nodes = {7: 1, 25: 7}.get(field)  # graph, functions -> field of their nodes
        for inner, node in _fields(model) if nodes else ():
            if inner == nodes:
                texts = {number: bytes(text).decode(errors="replace") for number, text in _fields(node)}
                domain = texts.get(7, "")
                found.add(f"{domain}::{texts.get(4, '')}" if domain else texts.get(4, ""))
    return found


def with_size(content: bytes, letter: str, size: int) -> bytes:
    """The file with every dimension called `letter` of its inputs, outputs and values set to `size`.

    TensorRT wants a cache that is written in place to have a fixed length when it reads the graph.
    """
    return _resized(memoryview(content), "Model", letter.encode(), size)


def _resized(content: memoryview, message: str, letter: bytes, size: int) -> bytes:
    if message == "Dimension":
        named = any(field == 2 and bytes(value) == letter for field, value in _fields(content))
        return b"\x08" + as_varint(size) if named else bytes(content)  # field 1, a number
    inner, parts = SHAPES[message], []
    for field, whole, value in spans(content):
        kind = inner.get(field)
        if kind is None or value is None:
            parts.append(bytes(whole))
        else:
            changed = _resized(value, kind, letter, size)
            parts.append(as_varint(field << 3 | 2) + as_varint(len(changed)) + changed)
    return b"".join(parts)


def _locations(content: memoryview, message: str, depth: int) -> Iterator[str]:
    for tensor in _tensors(content, message, depth):
        # A key that stands twice: readers differ in which they take, so all are looked at.
        yield from (value.decode(errors="replace") for key, value in tensor if key == b"location")


def _tensors(content: memoryview, message: str, depth: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """(key, value) of the external data of every tensor."""
    if depth > DEEPEST:
        raise ValueError(f"messages nest deeper than {DEEPEST}")
    inner = MESSAGES[message]
    entries = []
    for field, value in _fields(content):
        kind = inner.get(field)
        if kind == "Entry":
            pair = {number: bytes(text) for number, text in _fields(value)}
            entries.append((pair.get(1, b""), pair.get(2, b"")))
        elif kind is not None:
            yield from _tensors(value, kind, depth + 1)
    if entries:
        yield entries


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, bytes) of the length-delimited fields of one message."""
    for field, _, value in spans(content):
        if value is not None:
            yield field, value


def spans(content: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """(field number, the whole field, its bytes where it is length-delimited) of each field of one message."""
    at = 0
    while at < len(content):
        start = at
        key, at = varint(content, at)
        field, wire = key >> 3, key & 7
        # Other readers keep 32 bits of a tag: a longer one would name another field to them than to us.
        if key >> 32 or at - start > 5 or field == 0:
            raise ValueError("a field without a proper number")
        value = None
        if wire == 2:
            size, at = varint(content, at)
            if at + size > len(content):
                raise ValueError("a field is longer than its message")
            value = content[at : at + size]
            at += size
        elif wire == 0:
            _, at = varint(content, at)
        elif wire in FIXED_SIZES:
            at += FIXED_SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        yield field, content[start:at], value


def varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("the file ends inside a number")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
