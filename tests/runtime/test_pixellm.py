"""What a PixelLM answer says: text, labels, spans, limits; over the golden model, with scripted generations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt.errors import InputError
from pixelrt.families import pixellm
from pixelrt.generate import Generation
from pixelrt.recording import noted

SEG = list(range(400, 406))
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def seg(golden_bundle_a: Path) -> pixelrt.Segmenter:
    return pixelrt.load(golden_bundle_a)


@pytest.fixture(scope="module")
def frame(seg: pixelrt.Segmenter) -> pixelrt.Frame:
    return seg.encode(PICTURE)


@pytest.fixture
def say(seg: pixelrt.Segmenter, frame: pixelrt.Frame, monkeypatch: pytest.MonkeyPatch):
    """Answers made of words and runs; `prompt_targets` were named in the prompt."""

    def answer(*parts: str | list[int], prompt_targets: int = 0, end: bool = True) -> pixelrt.Answer:
        ids: list[int] = []
        for part in parts:
            ids += seg.prompt.tokenizer.encode(part).ids if isinstance(part, str) else part
        count = sum(token in SEG for token in ids) + 6 * prompt_targets
        hidden = list(np.random.default_rng(1).standard_normal((count, 128)).astype(np.float32))
        scripted = Generation(ids + [2] * end, hidden, end)
        monkeypatch.setattr(pixellm, "generate", lambda *a, **k: iter([scripted]))
        return seg.segment(frame, "What?")

    return answer


def told(answer: pixelrt.Answer) -> list[tuple[str, str | None]]:
    """(label, marked text) of each mask."""
    return [(m.label, m.span and answer.text[slice(*m.span)]) for m in answer.masks]


def test_labels_and_spans(say) -> None:
    answer = say("Sure, the red circle", SEG, "and the blue star", SEG, ".")
    assert answer.text == "Sure, the red circle [SEG] and the blue star [SEG]."
    assert told(answer) == [("red circle", "[SEG]"), ("blue star", "[SEG]")]
    assert answer.finished


def test_words_that_look_like_a_mark(say) -> None:
    """The model may write "[SEG]" in letters: that is no mask."""
    answer = say("The sign [SEG] stands by the red circle", SEG, "and the blue star", SEG)
    assert answer.text == "The sign [SEG] stands by the red circle [SEG] and the blue star [SEG]"
    assert told(answer) == [("sign [SEG] stands by the red circle", "[SEG]"), ("blue star", "[SEG]")]
    assert answer.masks[0].span == (40, 45)


def test_targets_without_a_place(say) -> None:
    answer = say("a cup", SEG, prompt_targets=1)
    assert told(answer) == [("", None), ("cup", "[SEG]")]
    pieces = say("x", SEG[:3], "y", SEG, "z", SEG[3:])
    assert told(pieces) == [("", None), ("", None)]
    assert pieces.text.startswith("x [SEG0] [SEG1] [SEG2] y [SEG] z")


def test_no_masks(say) -> None:
    answer = say("There is none.", end=False)
    assert (answer.text, answer.masks, answer.finished) == ("There is none.", [], False)
    assert say("a cup", SEG[:4]).masks == []


def test_timing_is_of_the_question_alone(say, frame: pixelrt.Frame) -> None:
    assert set(frame.timing) == {"image", "encode"}
    assert set(say("a", SEG).timing) == {"language", "pixel_decoder", "upsample"}


@pytest.mark.parametrize("seg_runs", ["complete", "original"])
def test_prompts_up_to_the_last_position(seg: pixelrt.Segmenter, frame: pixelrt.Frame, seg_runs: str) -> None:
    """2048 positions, 256 of them the picture's; five are kept so that a run can always be completed."""
    empty = len(seg.prompt("a").input_ids()) - 2  # without the -200 and the word
    room = 2048 - 256 - 5 - 1 - empty
    answer = seg.segment(frame, " ".join(["a"] * room), 512, seg_runs)
    assert 1 <= len(answer.token_ids) <= 6 and not answer.finished
    with pytest.raises(InputError, match=r"1787 tokens long.*fewer than 1787"):
        seg.segment(frame, " ".join(["a"] * (room + 1)))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (None, "is empty"),
        ("a" * 200_000, "has 200000 characters"),
        ("look at <image> twice", "Leave it out"),
        ("<im_start><image><im_end> and <image>", "Leave it out"),
        ("Segment the <unk> circle", "holds <unk>"),
        ("Segment \udcff", "not valid Unicode"),
    ],
)
def test_prompts_that_are_refused(
    seg: pixelrt.Segmenter, frame: pixelrt.Frame, prompt, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        seg.segment(frame, prompt)


def test_frames_belong_to_their_bundle(
    seg: pixelrt.Segmenter, golden_bundle_b: Path, frame: pixelrt.Frame
) -> None:
    with pytest.raises(InputError, match="another bundle"):
        pixelrt.load(golden_bundle_b).segment(frame, "What?")
    assert frame == frame and frame in [frame] and {frame: 1}[frame] == 1


def test_an_image_is_encoded_first(seg: pixelrt.Segmenter, frame: pixelrt.Frame) -> None:
    direct, reused = seg.segment(PICTURE, "What?", 8), seg.segment(frame, "What?", 8)
    assert direct.token_ids == reused.token_ids
    np.testing.assert_array_equal(direct.masks[0].low_res_logits, reused.masks[0].low_res_logits)


def test_drafts_change_the_forwards_alone(golden_bundle_b: Path) -> None:
    seg = pixelrt.load(golden_bundle_b)
    frame = seg.encode(PICTURE)
    drafts, seg.drafts = seg.drafts, None
    plain = seg.segment(frame, "Find it.", 24)
    assert plain.decoding.drafted == 0 and plain.decoding.accept_rate is None
    seg.drafts = drafts
    for forwards in (plain.decoding.forwards, 1):  # the second time it is known
        answer = seg.segment(frame, "Find it.", 24)
        assert answer.token_ids == plain.token_ids and answer.text == plain.text
        assert answer.decoding.forwards <= forwards
        for mask, other in zip(answer.masks, plain.masks, strict=True):
            assert np.array_equal(mask.mask, other.mask)
    decoding = answer.decoding
    # All of the answer was drafted; what was drafted beside it is another answer's.
    assert answer.finished and len(answer.token_ids) == decoding.accepted <= decoding.drafted
    assert answer.to_json()["decoding"]["accept_rate"] == round(decoding.accepted / decoding.drafted, 4)
    drafts.learning = False
    before = drafts.examples
    seg.segment(frame, "Where is it?", 24)
    assert drafts.examples == before


def test_what_is_recorded_is_not_drafted(seg: pixelrt.Segmenter) -> None:
    """A recording has one row of logits a token."""
    twin, _ = noted(seg)
    assert twin.drafts is None and seg.drafts is not None


def test_answers_in_the_manifest_are_drafted(golden_bundle_b: Path) -> None:
    from pixelrt.families import pixellm_drafts

    seg = pixelrt.load(golden_bundle_b)
    rows = [{"prompt": "Find the mug.", "answer": "Here: mug [SEG]!"}, {"prompt": " ", "answer": "no"}]
    drafts = pixellm_drafts.new(seg.prompt, seg.codebook, seg.eos, rows)
    whole = drafts.of(seg.prompt("Find the mug.").tail)([])[0]
    assert whole[-1] == seg.eos and seg.render(whole)[0] == "Here: mug [SEG]!"
    assert len(drafts.examples) == 1 + len(pixellm_drafts.ANSWERS)


def test_a_token_costs_what_the_machine_must_compute_beside_reading_the_weights(
    golden_bundle_b: Path,
) -> None:
    from pixelrt.families.pixellm_drafts import token_cost

    def cost(precision: str, on_gpu: bool, hidden: int = 4096, layers: int = 32) -> float:
        manifest = {"language": {"hidden": hidden, "layers": layers}, "precision": {"language": precision}}
        return token_cost(manifest | {"embeddings": {"shape": [8 * hidden, hidden]}}, on_gpu)

    # Twelve tokens drafted beside the likeliest answer are worth it on a GPU, and not where a CPU has 4-bit weights.
    assert 12 * cost("fp16", True) < 0.1 < 12 * cost("int4", True) < 0.5 < 12 * cost("fp32", False)
    assert cost("int4", False) > 0.5 > 12 * cost("fp32", False, hidden=128, layers=4)
    loaded: Any = pixelrt.load(golden_bundle_b)
    assert loaded.drafts.token_cost == token_cost(loaded.bundle.manifest, False)
