"""`pixelrt::FuseScales`: PixelLM's fusion of a scale with the coarser one's mask, with a body of standard operators.

    out[n, p, c] = (sigmoid(previous[n, p]) + 1) * features[p, c] + dense[c]

Letters: N targets, P positions, C channels. The specification is `pixelrt_kernels/fuse_scales/reference.py`.
"""

from __future__ import annotations

import onnx
from onnx import parser

from pixelrt_export.graphs.deform_attn import DOMAIN


def fuse_scales(opset: int) -> onnx.FunctionProto:
    """previous (N, P, 1) float32 logits, features (1, P, C), dense (1, 1, C) -> output (N, P, C).

    Computed in fp32 and rounded once to the type of `features`, as the kernel of that name does.
    """
    return parser.parse_function(f"""
        <opset_import: ["": {opset}], domain: "{DOMAIN}">
        FuseScales (previous, features, dense) => (output)
        {{
            unit = Constant <value_float = 1.0> ()
            probability = Sigmoid (previous)
            focus = Add (probability, unit)
            features32 = Cast <to = 1> (features)
            dense32 = Cast <to = 1> (dense)
            focused = Mul (focus, features32)
            fused = Add (focused, dense32)
            output = CastLike (fused, features)
        }}
    """)
