"""Questions asked together are answered as each is alone: the shipped checkpoints, every token and mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt import Classes, Refer, Regions

# Sums over masked tokens of other prompts may be added up in another order; the largest difference seen was 5e-5.
LOGITS = 1e-3
# In all: such a difference shows where a logit is as good as zero.
PIXELS = 2


def check(answers: Sequence[Any], alone: Sequence[Any]) -> int:
    """How many masks were equal."""
    assert len(answers) == len(alone)
    pixels, masks = 0, 0
    for answer, wanted in zip(answers, alone, strict=True):
        assert (type(answer), answer.text) == (type(wanted), wanted.text)
        if isinstance(wanted, pixelrt.Answer):
            assert (answer.token_ids, answer.finished) == (wanted.token_ids, wanted.finished)
        assert len(answer.masks) == len(wanted.masks)
        for mask, other in zip(answer.masks, wanted.masks, strict=True):
            assert (mask.label, mask.span) == (other.label, other.span)
            np.testing.assert_allclose(mask.low_res_logits, other.low_res_logits, atol=LOGITS)
            np.testing.assert_allclose(mask.score, other.score, atol=LOGITS)
            pixels += int((mask.mask != other.mask).sum())
            masks += 1
    assert pixels <= PIXELS
    return masks


def test_pixellm(tiny_bundle: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions of all kinds, pictures of several shapes, answers with masks and without, long and cut off."""
    monkeypatch.syspath_prepend(str(root))
    from benchmarks.speculation import asked_in_scenes

    seg: Any = pixelrt.load(tiny_bundle)
    asked = list(asked_in_scenes(14))
    images = [image[: len(image) - 17 * (i % 3)] for i, (_, image, _) in enumerate(asked)]
    prompts = [text for _, _, text in asked]
    images[5], images[9], prompts[9] = images[2], images[2], prompts[2]  # a picture thrice, a question twice
    alone = [seg.segment(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    assert check(seg.segment_batch(images, prompts), alone) > 4
    assert any(not answer.masks for answer in alone)
    assert len({len(answer.token_ids) for answer in alone}) > 4

    frame = seg.encode(images[2])
    alone = [seg.segment(frame, prompt, 9) for prompt in prompts]
    assert check(seg.segment_batch(frame, prompts, 9), alone) and not all(a.finished for a in alone)
    alone = [seg.segment(image, prompts[0]) for image in images[:4]]
    check(seg.segment_batch(images[:4], prompts[0]), alone)
    check(seg.segment_batch(images[:1], prompts[:1]), alone[:1])


def test_psalm(psalm_bundle: Path, root: Path, class_names: list[str]) -> None:
    """Every kind of question about pictures of several shapes, in groups and one by one."""
    seg: Any = pixelrt.load(psalm_bundle)
    pictures = sorted((root / "calib_data").glob("scene_*.png"))[:3]
    queries = [
        Refer("the blue star"),
        Classes(class_names),
        Regions(points=[(72, 90)], boxes=[(81, 46, 140, 108)]),
        "the striped shape",
        Classes(class_names[:3], "semantic"),
        Regions(boxes=[(20, 20, 90, 95)]),
        Classes(class_names[:5], "instance"),
        Refer("the blue star"),
    ]
    frame = seg.encode(pictures[0])
    alone = [seg.segment(pictures[0], query) for query in queries]
    assert check(seg.segment_batch(frame, queries), alone) > 8
    check(seg.segment_batch(frame, queries[:1]), alone[:1])
    images = [pictures[i % 3] for i in range(len(queries))]
    alone = [seg.segment(image, query) for image, query in zip(images, queries, strict=True)]
    check(seg.segment_batch(images, queries), alone)
    check(seg.segment_batch(pictures, "the red circle"), [seg.segment(p, "the red circle") for p in pictures])
