"""What calibration lets PixelLM's language model read is what the model itself writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixelrt.tokens import TokenTable
from pixelrt_export.families.pixellm import Reader
from pixelrt_export.quantize.records import Record

pytest.importorskip("sentencepiece", reason="the original's tokenizer reads its model with it")

from pixelrt_export.tiny.tokenizer import Tokenizer


@pytest.mark.parametrize("answer", ["Sure, it is [SEG].", "The mug [SEG] and the red book [SEG] are there."])
def test_an_answer_is_read_as_the_original_tokenizer_writes_it(
    golden_pixellm: Path, golden_bundle_a: Path, tmp_path: Path, answer: str
) -> None:
    """A blank before a codebook token is no token of its own."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    manifest = json.loads((golden_bundle_a / "manifest.json").read_text())
    tokens, table = manifest["tokens"], manifest["embeddings"]
    original = Tokenizer.read(golden_pixellm / "tokenizer")
    names = {token: text for text, token in original.added.items()}
    wanted = original.encode(answer.replace("[SEG]", " ".join(names[i] for i in tokens["seg"])))
    embeddings = TokenTable(golden_bundle_a / table["file"], table["dtype"], table["shape"])
    image = np.zeros((1, tokens["image_tokens"], table["shape"][1]), np.float32)
    record = Record(tmp_path / "a.png", "Where is the mug?", answer)
    states = Reader(golden_bundle_a, manifest).text(record, {"image_tokens": image}).states
    np.testing.assert_array_equal(states[-len(wanted) :], embeddings(wanted))
