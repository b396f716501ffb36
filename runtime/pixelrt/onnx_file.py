"""Which files an ONNX file reads besides itself, without the onnx package.

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
FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes
DEEPEST = 100  # messages in messages, protobuf's own limit


def external_locations(content: bytes) -> set[str]:
    """The `location` of every external tensor.

    Raises ValueError where the bytes are no protobuf, or are one that readers could understand differently.
    """
    return set(_locations(memoryview(content), "Model", 1))


def _locations(content: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise ValueError(f"messages nest deeper than {DEEPEST}")
    inner = MESSAGES[message]
    for field, value in _fields(content):
        kind = inner.get(field)
        if kind == "Entry":
            pair = {number: bytes(text) for number, text in _fields(value)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode(errors="replace")
        elif kind is not None:
            yield from _locations(value, kind, depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, bytes) of the length-delimited fields of one message."""
    at = 0
    while at < len(content):
        start = at
        key, at = _varint(content, at)
        field, wire = key >> 3, key & 7
        # Other readers keep 32 bits of a tag: a longer one would name another field to them than to us.
        if key >> 32 or at - start > 5 or field == 0:
            raise ValueError("a field without a proper number")
        if wire == 2:
            size, at = _varint(content, at)
            if at + size > len(content):
                raise ValueError("a field is longer than its message")
            yield field, content[at : at + size]
            at += size
        elif wire == 0:
            _, at = _varint(content, at)
        elif wire in FIXED_SIZES:
            at += FIXED_SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
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
