"""Token ids of a PixelLM's answer as text, with a mark where a mask stands."""

from __future__ import annotations

from tokenizers import Tokenizer

from pixelrt.families.pixellm_drafts import MARK
from pixelrt.generate import Codebook


def rendered(
    tokenizer: Tokenizer, codebook: Codebook, eos: int, token_ids: list[int]
) -> tuple[str, dict[int, tuple[int, int]]]:
    """Readable text with `[SEG]` where a full run stands; index of each run's first token -> its span."""
    run, seg = codebook.run, codebook.ids
    ids = token_ids[:-1] if token_ids[-1:] == [eos] else token_ids
    text, i = "", 0
    spans: dict[int, tuple[int, int]] = {}
    while i < len(ids):
        if ids[i] in seg:
            whole = len(ids) - i >= run and all(t in seg for t in ids[i : i + run])
            piece = MARK if whole else tokenizer.id_to_token(ids[i]) or ""
            step = run if whole else 1
        else:
            step = next((n for n, t in enumerate(ids[i:]) if t in seg), len(ids) - i)
            whole = False
            piece = tokenizer.decode(ids[i : i + step], skip_special_tokens=False).strip()
        glue = "" if not text or piece[:1] in ".,;:!?)" else " "
        text += glue + piece
        if whole:
            spans[i] = (len(text) - len(MARK), len(text))
        i += step
    return text, spans
