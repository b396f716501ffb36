"""Which sizes an engine takes, by the letters of the manifest's shapes.

decode       few new tokens after many: S 1..8, T 1..M
prefill      prompt and picture at once: S 1..prefill, T 1..M
image        what is done once for a picture: encoder and pixel decoder

B batch, S new tokens, M cache length, T tokens attended to, P past tokens, R rows with logits, N targets of an
answer, K conditions, Q mask queries (docs/bundle.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelrt.bundle import Tensor
from pixelrt.engines import Range
from pixelrt.errors import InputError

DECODE_TOKENS = 8  # a run of codebook tokens has six
ROUND = 64  # cache lengths are multiples of it, as the kernels like them
LETTERS = frozenset("BSTMPRNKQ")
Extent = tuple[int, int, int]  # least, best, most


@dataclass(frozen=True)
class Sizes:
    """The most of everything. cache: tokens of prompt, picture and answer. prefill: of prompt and picture."""

    cache: int
    prefill: int
    batch: int = 1
    targets: int = 32
    conditions: int = 256
    queries: int = 100

    @classmethod
    def of(
        cls,
        manifest: Mapping[str, Any],
        *,
        cache: int | None = None,
        prefill: int | None = None,
        batch: int = 1,
        targets: int = 32,
        conditions: int = 256,
    ) -> Sizes:
        """Sizes that suit the bundle where none is given. Raises InputError where they do not fit each other."""
        positions, image = manifest["language"]["max_positions"], manifest["tokens"]["image_tokens"]
        writes = manifest["family"] == "pixellm"  # the other family reads its prompt and is done
        words = 256 if writes else 1024
        prefill = min(positions, _rounded(image + words)) if prefill is None else prefill
        cache = min(positions, _rounded(prefill + (512 if writes else 0))) if cache is None else cache
        if cache > positions:
            raise InputError(f"--cache-length is {cache}; this model has {positions} positions at most.")
        if not image + DECODE_TOKENS < prefill <= cache:
            raise InputError(
                f"--prefill is {prefill} and --cache-length {cache}; wanted more than the {image} tokens of a picture "
                "and the words of a prompt in the first, and no less in the second."
            )
        queries = manifest.get("decoder", {}).get("queries", 100)
        return cls(cache, prefill, batch, targets, conditions, queries)


def _rounded(count: int) -> int:
    return -(-count // ROUND) * ROUND


def profiles_of(
    stage: str, inputs: tuple[Tensor, ...], sizes: Sizes, empty: bool
) -> dict[str, dict[str, Range]]:
    """Profile -> input -> its least, best and most shape; inputs of one shape only are left out.

    empty: sizes of 0 are wanted too (a PSALM pass that only fills the cache asks for nothing).
    """
    if stage != "language":
        return {"image": _ranges(inputs, _image(sizes, empty))}
    return {
        "decode": _ranges(inputs, _language(sizes, DECODE_TOKENS, 1, empty)),
        "prefill": _ranges(inputs, _language(sizes, sizes.prefill, sizes.prefill, empty)),
    }


def _image(sizes: Sizes, empty: bool) -> dict[str, Extent]:
    few = min(8, sizes.conditions)
    return {
        "B": (1, 1, sizes.batch),
        "N": (1, min(2, sizes.targets), sizes.targets),
        "K": (1, few, sizes.conditions),
    }


def _language(sizes: Sizes, most: int, best: int, empty: bool) -> dict[str, Extent]:
    least = 0 if empty else 1
    end = max(best, sizes.cache // 2) if best == 1 else best
    return {
        "B": (1, 1, sizes.batch),
        "S": (1, best, most),
        "M": (sizes.cache,) * 3,
        "T": (1, end, sizes.cache),
        "P": (0, end - best, sizes.cache - most),
        "R": (1, min(best, DECODE_TOKENS), min(most, 64)),
        "K": (least, min(8, sizes.conditions), sizes.conditions),
        "Q": (least, min(most, sizes.queries), min(most, sizes.queries)),
    }


def _ranges(inputs: tuple[Tensor, ...], extents: Mapping[str, Extent]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for tensor in inputs:
        unknown = {d for d in tensor.shape if isinstance(d, str)} - extents.keys()
        if unknown:
            raise InputError(
                f"{tensor.name} has sizes {', '.join(sorted(unknown))} unknown to this pixelrt. Upgrade it."
            )
        ends = [tuple(extents[d][i] if isinstance(d, str) else d for d in tensor.shape) for i in range(3)]
        least, best, most = ends
        if any(isinstance(d, str) and d != "M" for d in tensor.shape):
            found[tensor.name] = (least, best, most)
    return found
