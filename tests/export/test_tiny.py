"""Scenes, questions, tokenizer, packed training rows and scoring; the shipped tiny checkpoint."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentencepiece", reason="needs the train extra")

from pixelrt_export.reference.generate import Reference  # noqa: E402
from pixelrt_export.tiny import evaluate  # noqa: E402
from pixelrt_export.tiny.checkpoint import new_model, read_checkpoint, vocab_size  # noqa: E402
from pixelrt_export.tiny.losses import answer_hidden  # noqa: E402
from pixelrt_export.tiny.pixellm_exam import KINDS, MEASURES, reference_answerer  # noqa: E402
from pixelrt_export.tiny.questions import MIX, caption, question  # noqa: E402
from pixelrt_export.tiny.relations import relations  # noqa: E402
from pixelrt_export.tiny.rows import Packer  # noqa: E402
from pixelrt_export.tiny.scenes import scene  # noqa: E402
from pixelrt_export.tiny.tables import Report  # noqa: E402
from pixelrt_export.tiny.tokenizer import IMAGE_ID, Tokenizer, train_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "pixellm-tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_model(scenes=100, pieces=560))


def test_answers_mark_their_targets() -> None:
    rng, seen = random.Random(0), set()
    for seed in range(60):
        things = scene(seed).things
        for _ in range(8):
            asked = question(things, rng)
            seen.add(asked.kind)
            assert asked.answer.count("[SEG]") == len(asked.targets)
            if asked.kind in ("refusal", "unknown", "count", "colour"):
                assert not asked.targets
            for name, thing in zip(asked.answer.split("[SEG]"), asked.targets, strict=False):
                assert name.rstrip().endswith(thing.name)
    assert seen == set(MIX)


def test_ids_are_the_original_tokenizer_s(golden_pixellm: Path) -> None:
    ours = Tokenizer.read(golden_pixellm / "tokenizer")
    for case in json.loads((golden_pixellm / "tokenizer" / "golden_tokens.json").read_text()):
        if "text" not in case:
            continue
        parts = case["text"].split("<image>")
        ids = [1]
        for part in parts:
            ids += ([IMAGE_ID] if len(ids) > 1 else []) + ours.encode(part)
        assert ids == case["ids"], case["text"]


def test_text_survives_the_vocabulary(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for seed in range(30):
        things = scene(seed).things
        for asked in (caption(things), question(things, rng)):
            assert tokenizer.text(tokenizer.answer(asked.answer)) == asked.answer
    assert tokenizer.prompt("Segment the red circle.").count(IMAGE_ID) == 1
    assert tokenizer.text(tokenizer.encode("crème brûlée 犬")) == "crème brûlée 犬"  # by bytes


def test_the_vocabulary_has_every_word() -> None:
    """Every question and answer survives, in whole words: no word of them is spelled out byte by byte."""
    ours, rng = Tokenizer(train_model(scenes=150)), random.Random(4)
    for seed in range(40):
        things = scene(seed).things
        for asked in (caption(things), *(question(things, rng, kind) for kind in MIX)):
            assert ours.text(ours.answer(asked.answer)) == asked.answer
            assert len(ours.encode(asked.text)) <= 1.4 * len(asked.text.split()) + 4, asked.text


@pytest.mark.parametrize("kind", ["count", "relation", "several"])
def test_packed_rows_mark_the_targets_of_every_kind(tokenizer: Tokenizer, kind: str) -> None:
    packer = Packer(tokenizer, 25, {kind: 1.0})
    drawn = next(s for s in (scene(k) for k in range(99)) if relations(s.things))
    rows = packer.pack([list(drawn.things)], 2, random.Random(0))
    marks = (rows.labels == tokenizer.seg_ids[0]).sum()
    assert len(rows.targets) == marks and (marks > 0) == (kind != "count")


def test_packed_rows_are_separate_questions(tokenizer: Tokenizer) -> None:
    """Each packed question sees what it would see alone: same hidden states as plain prompts have."""
    torch.manual_seed(0)
    net = new_model(vocab_size(tokenizer)).eval()
    reference, packer = Reference(net, tokenizer.seg_ids), Packer(tokenizer, net.sizes.token_grid**2)
    # Far from square: some image tokens are padding.
    drawn = next(s for s in map(scene, range(99)) if min(s.labels.shape) < 0.7 * max(s.labels.shape))
    rows = packer.pack([list(drawn.things)], 3, random.Random(2))
    rng = random.Random(2)
    asked = [caption(drawn.things), *(question(drawn.things, rng) for _ in range(3))]
    with torch.inference_mode():
        from pixelrt_export.reference.preprocess import preprocess

        pixels, fitted = preprocess(drawn.image, net.sizes.image_size)
        features = net.encode(torch.from_numpy(pixels)[None], [fitted])
        packed = answer_hidden(net, packer, rows, features)[0]
        for segment, q in enumerate(asked, start=1):
            ids = tokenizer.prompt(q.text) + tokenizer.answer(q.answer)
            alone, _, _ = reference._forward(ids, features)
            labels = rows.labels[0][rows.segment[0] == segment]
            ours = packed[rows.segment[0] == segment][labels >= 0]
            answer = len(ours)
            torch.testing.assert_close(ours, alone[0, -answer - 1 : -1], atol=1e-4, rtol=0)
            assert labels[labels >= 0].tolist() == ids[-answer:]


def test_the_shipped_checkpoint_answers() -> None:
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) < 10e6
    net, tokenizer = read_checkpoint(SHIPPED)
    assert vocab_size(tokenizer) == net.sizes.llama.vocab_size
    report = Report(MEASURES, KINDS, with_all=True)
    for record, _ in evaluate.ask(reference_answerer(SHIPPED), 8, evaluate.SEED_BASE, 140):
        report.add(record)
    row = report.tables()["held-out seeds"]["all"]
    assert row["exact"][0] > 0.8 and row["iou"][0] > 0.75  # loose: 0.95 and 0.86 over 500 scenes


@pytest.mark.slow
def test_smoke_training_resumes_nothing_and_writes_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pixelrt_export.tiny.train", "--smoke"]
    command += ["--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT / "export")
    net, _ = read_checkpoint(tmp_path / "checkpoint")
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert (tmp_path / "log.jsonl").read_text().count("\n") >= 1
    assert (tmp_path / "curves.png").stat().st_size > 2000
    again = subprocess.run(
        command, check=True, timeout=300, cwd=ROOT / "export", capture_output=True, text=True
    )
    assert "done" in again.stdout  # its time is spent: a second start only writes the checkpoint again
