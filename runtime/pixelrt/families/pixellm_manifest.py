"""What a PixelLM bundle's manifest holds; see `pixelrt.manifest`."""

from __future__ import annotations

from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.families import pixellm_drafts
from pixelrt.generate import Codebook

FORM = {
    "prompt": {"template": str},
    "tokens": {"bos": int, "eos": int, "pad": int, "seg": [int], "seg_scales": int, "image_tokens": int},
    "language": {"hidden": int, "max_positions": int, "layers?": int},
    "drafts?": pixellm_drafts.FORM,
}


def check_tokens(bundle: Bundle, codebook: Codebook, scales: int) -> None:
    """Ids that are used must be rows of the token table, and the codebook must divide into its scales."""
    tokens, (rows, width) = bundle.manifest["tokens"], bundle.manifest["embeddings"]["shape"]
    ids = [*codebook.ids, tokens["bos"], tokens["eos"], tokens["pad"]]
    distinct = len(set(codebook.ids)) == codebook.run > 0
    if not distinct or scales < 1 or codebook.run % scales or max(ids) >= rows:
        raise InputError(
            f"{bundle.path} has codebook ids {list(codebook.ids)} in {scales} scales and {rows} rows of embeddings, "
            "which do not fit one another. Export the bundle again."
        )
    if width != bundle.manifest["language"]["hidden"]:
        raise InputError(
            f"{bundle.path} has embeddings of another width than its model. Export the bundle again."
        )
