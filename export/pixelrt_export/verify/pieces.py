"""A graph cut into pieces that run one after another: what a session takes for one of them, and not for all.

A node belongs to the first piece that cannot do without it. Values pass from piece to piece by name; each piece has
the large tensors that its own nodes read, by name, as the whole graph has them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper


@dataclass(frozen=True)
class Piece:
    """nodes: of the graph, in its order. reads: values made before it. gives: values that others read, or that were
    asked for. last: values that nobody reads after it."""

    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    last: frozenset[str]


def pieces(graph: onnx.GraphProto, cuts: Sequence[str], wanted: Collection[str]) -> list[Piece]:
    """Cut a graph behind each of these values, in their order. wanted: values that somebody outside reads."""
    maker = {value: i for i, node in enumerate(graph.node) for value in node.output if value}
    piece_of = [len(cuts)] * len(graph.node)
    for number, cut in enumerate(cuts):
        open_values = [cut]
        while open_values:
            at = maker.get(open_values.pop())
            if at is not None and piece_of[at] == len(cuts):
                piece_of[at] = number
                open_values += read_by(graph.node[at])
    given = {value.name for value in graph.input}
    readers: dict[str, int] = {}  # value -> the last piece that reads it
    for node, piece in zip(graph.node, piece_of, strict=True):
        for value in read_by(node):
            readers[value] = max(readers.get(value, 0), piece)
    found = []
    for number in range(len(cuts) + 1):
        nodes = tuple(i for i, piece in enumerate(piece_of) if piece == number)
        if not nodes:
            continue
        made = [value for i in nodes for value in graph.node[i].output if value]
        read = dict.fromkeys(value for i in nodes for value in read_by(graph.node[i]))
        gives = tuple(value for value in made if value in wanted or readers.get(value, number) > number)
        before = [v for v in read if v in given or (v in maker and piece_of[maker[v]] < number)]
        done = frozenset(value for value, piece in readers.items() if piece == number) - given
        found.append(Piece(nodes, tuple(before), gives, done))
    return found


def read_by(node: onnx.NodeProto) -> list[str]:
    """Its inputs, and what the graphs inside it read from outside."""
    found = [value for value in node.input if value]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {value for n in inner.node for value in n.output} | {v.name for v in inner.input}
            found += [value for n in inner.node for value in read_by(n) if value not in own]
    return found


def model_of(whole: onnx.ModelProto, piece: Piece, kinds: Mapping[str, np.dtype]) -> onnx.ModelProto:
    """One piece as a model of its own. kinds: dtypes of what it reads."""
    graph = whole.graph
    nodes = [graph.node[i] for i in piece.nodes]
    used = {value for node in nodes for value in read_by(node)}
    made = helper.make_graph(
        nodes,
        graph.name,
        [
            helper.make_tensor_value_info(
                value, helper.np_dtype_to_tensor_dtype(np.dtype(kinds[value])), None
            )
            for value in piece.reads
        ],
        [onnx.ValueInfoProto(name=value) for value in piece.gives],  # the runtime finds their types
        [tensor for tensor in graph.initializer if tensor.name in used],
    )
    return helper.make_model(
        made, opset_imports=whole.opset_import, functions=whole.functions, ir_version=whole.ir_version
    )


def stored_bytes(model: onnx.ModelProto) -> int:
    """Of its tensors in the weight file."""
    return sum(
        int(pair.value)
        for tensor in model.graph.initializer
        for pair in tensor.external_data
        if pair.key == "length"
    )


def largest_widened(model: onnx.ModelProto) -> int:
    """Bytes of the largest tensor in 16 bits that is cast to 32."""
    cast = {value for node in model.graph.node if node.op_type == "Cast" for value in node.input}
    sizes = [
        2 * math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16 and tensor.name in cast
    ]
    return max(sizes, default=0)
