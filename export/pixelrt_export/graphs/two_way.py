"""SAM's two-way transformer as a graph, in the form PixelLM uses it (specification section 6.3).

Letters: N targets, Q prompt tokens, P image positions, D width. Image tensors may have batch 1 where they do
not depend on the target; they broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelrt_export.graph import Graph

Tensor = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class TwoWay:
    """One level's transformer: where its weights are and how it is cut into heads."""

    g: Graph
    tensor: Tensor
    name: str  # of the weights in the bundle
    key: str  # of the weights in the checkpoint
    heads: int
    width: int
    depth: int

    def linear(self, x: str, leaf: str) -> str:
        """A projection of an attention or MLP; query projections carry 1/sqrt(head dim)."""
        factor = np.float32(1)
        if leaf.endswith("q_proj"):
            inner = self.width if "self_attn" in leaf else self.width // 2
            factor = np.float32((inner // self.heads) ** -0.5)
        return self.g.linear(
            x,
            f"{self.name}.{leaf}",
            lambda: self.tensor(f"{self.key}.{leaf}.weight").astype(np.float32) * factor,
            lambda: self.tensor(f"{self.key}.{leaf}.bias").astype(np.float32) * factor,
        )

    def norm(self, x: str, leaf: str) -> str:
        return self.g.layer_norm(
            x,
            f"{self.name}.{leaf}",
            lambda: self.tensor(f"{self.key}.{leaf}.weight"),
            lambda: self.tensor(f"{self.key}.{leaf}.bias"),
            1e-5,
        )

    def attend(self, leaf: str, q: str, k: str, v: str) -> str:
        """Attention over projected q, k, v."""
        with self.g.scope(leaf):
            return self.linear(self.g.attention(q, k, v, self.heads), f"{leaf}.out_proj")

    def first_keys(self, image: str, image_positions: str) -> tuple[str, str, str]:
        """Of block 0: key and value of token->image and query of image->token, (·, P, D / 2) each.

        They read the image before any target has touched it, so where it does not depend on the target they
        belong to the encoder.
        """
        placed = self.g.op("Add", image, image_positions)
        return (
            self.linear(placed, "layers.0.cross_attn_token_to_image.k_proj"),
            self.linear(image, "layers.0.cross_attn_token_to_image.v_proj"),
            self.linear(placed, "layers.0.cross_attn_image_to_token.q_proj"),
        )

    def __call__(
        self, tokens: str, image: str, image_positions: str, first: tuple[str, str, str]
    ) -> tuple[str, str]:
        """tokens (N, Q, D), image (N or 1, P, D) -> both after all blocks and the final token attention."""
        g, add = self.g, lambda a, b: self.g.op("Add", a, b)
        q, k = tokens, image
        for i in range(self.depth):
            with g.scope(f"layers.{i}"):
                b = f"layers.{i}"
                if i == 0:  # the original leaves out both the residual and the token positions here
                    q = self._self_attention(b, q, q)
                    key, value, image_query = first
                else:
                    q = add(q, self._self_attention(b, add(q, tokens), q))
                    placed = add(k, image_positions)
                    key = self.linear(placed, f"{b}.cross_attn_token_to_image.k_proj")
                    value = self.linear(k, f"{b}.cross_attn_token_to_image.v_proj")
                    image_query = self.linear(placed, f"{b}.cross_attn_image_to_token.q_proj")
                q = self.norm(q, f"{b}.norm1")

                query = self.linear(add(q, tokens), f"{b}.cross_attn_token_to_image.q_proj")
                q = self.norm(
                    add(q, self.attend(f"{b}.cross_attn_token_to_image", query, key, value)), f"{b}.norm2"
                )

                hidden = g.op("Relu", self.linear(q, f"{b}.mlp.lin1"))
                q = self.norm(add(q, self.linear(hidden, f"{b}.mlp.lin2")), f"{b}.norm3")

                token_key = self.linear(add(q, tokens), f"{b}.cross_attn_image_to_token.k_proj")
                token_value = self.linear(q, f"{b}.cross_attn_image_to_token.v_proj")
                update = self.attend(f"{b}.cross_attn_image_to_token", image_query, token_key, token_value)
                k = self.norm(add(k, update), f"{b}.norm4")
        with g.scope("final"):
            f = "final_attn_token_to_image"
            query = self.linear(add(q, tokens), f"{f}.q_proj")
            key = self.linear(add(k, image_positions), f"{f}.k_proj")
            q = add(q, self.attend(f, query, key, self.linear(k, f"{f}.v_proj")))
            return self.norm(q, "norm_final_attn"), k

    def _self_attention(self, block: str, placed: str, q: str) -> str:
        leaf = f"{block}.self_attn"
        query, key = self.linear(placed, f"{leaf}.q_proj"), self.linear(placed, f"{leaf}.k_proj")
        return self.attend(leaf, query, key, self.linear(q, f"{leaf}.v_proj"))
