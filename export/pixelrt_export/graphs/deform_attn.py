"""`pixelrt::DeformAttn`: multi-scale deformable attention's sampling and sum, with a body of standard operators.

    out[b, q, m] = sum over levels l and points p of
                   weights[b, q, m, l, p] * bilinear(value_l[b, :, m], locations[b, q, m, l, p])

Letters: B images, N positions of all levels, M heads of width d, L levels, P points, Q queries. Locations are
(x, y), 0..1 across the level's map, pixel centres at (i + 1/2) / size; outside the map the value is zero.
"""

from __future__ import annotations

import onnx
from onnx import parser

DOMAIN = "pixelrt"


def deform_attn(opset: int, levels: int) -> onnx.FunctionProto:
    """value (B, N, M, d), locations (B, Q, M, L, P, 2) float32, weights (B, Q, M, L, P) -> output (B, Q, M * d).

    Attribute spatial_shapes: h0, w0, h1, w1, ... Sampled in fp32 whatever the type of value and weights: half a
    bit of a coordinate in fp16 is a sixteenth of a pixel on a map of 128.
    """
    each = range(levels)

    def names(stem: str) -> str:
        return ", ".join(f"{stem}{level}" for level in each)

    body = [
        "shapes = Constant <value_ints: ints = @spatial_shapes> ()",
        "minus1 = Constant <value_ints = [-1]> ()",
        "one = Constant <value_ints = [1]> ()",
        "pairs = Constant <value_ints = [-1, 2]> ()",
        "two = Constant <value_float = 2.0> ()",
        "unit = Constant <value_float = 1.0> ()",
        "sizes = Reshape (shapes, pairs)",
        "areas = ReduceProd <keepdims = 0> (sizes, one)",
        f"{names('size')} = Split <axis = 0, num_outputs = {levels}> (sizes)",
        "queries = Shape <start = 1, end = 2> (locations)",
        "points = Shape <start = 4, end = 6> (locations)",
        "grid_shape = Concat <axis = 0> (minus1, queries, points)",
        "count = Shape <start = 4, end = 5> (locations)",
        "weight_shape = Concat <axis = 0> (minus1, one, queries, count)",
        "width = Shape <start = 3, end = 4> (value)",
        # (B, N, M, d) -> L maps (B * M, d, h, w)
        "value32 = Cast <to = 1> (value)",
        "channels = Transpose <perm = [0, 2, 3, 1]> (value32)",
        f"{names('flat')} = Split <axis = 3> (channels, areas)",
        # 0..1 -> GridSample's -1..1, L grids (B * M, Q, P, 2)
        "doubled = Mul (locations, two)",
        "centred = Sub (doubled, unit)",
        "by_head = Transpose <perm = [0, 2, 3, 1, 4, 5]> (centred)",
        f"{names('places')} = Split <axis = 2, num_outputs = {levels}> (by_head)",
        "weights32 = Cast <to = 1> (weights)",
        "weights_by_head = Transpose <perm = [0, 2, 3, 1, 4]> (weights32)",
        f"{names('part')} = Split <axis = 2, num_outputs = {levels}> (weights_by_head)",
    ]
    for level in each:
        body += [
            f"side{level} = Reshape (size{level}, minus1)",
            f"map_shape{level} = Concat <axis = 0> (minus1, width, side{level})",
            f"map{level} = Reshape (flat{level}, map_shape{level})",
            f"grid{level} = Reshape (places{level}, grid_shape)",
            f'sampled{level} = GridSample <mode = "linear", padding_mode = "zeros", align_corners = 0> '
            f"(map{level}, grid{level})",
            f"share{level} = Reshape (part{level}, weight_shape)",
            f"weighted{level} = Mul (sampled{level}, share{level})",
            f"sum{level} = ReduceSum <keepdims = 0> (weighted{level}, minus1)",  # (B * M, d, Q)
        ]
    body += [
        f"total = Sum ({names('sum')})",
        "images = Shape <start = 0, end = 1> (value)",
        "heads = Shape <start = 2, end = 3> (value)",
        "split_shape = Concat <axis = 0> (images, heads, width, minus1)",
        "split = Reshape (total, split_shape)",
        "rows = Transpose <perm = [0, 3, 1, 2]> (split)",
        "row_shape = Concat <axis = 0> (images, queries, minus1)",
        "joined = Reshape (rows, row_shape)",
        "output = CastLike (joined, value)",
    ]
    head = f'<opset_import: ["": {opset}], domain: "{DOMAIN}">'
    signature = "DeformAttn <spatial_shapes> (value, locations, weights) => (output)"
    return parser.parse_function("\n".join([head, signature, "{", *body, "}"]))
