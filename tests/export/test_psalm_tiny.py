"""The small PSALM: packed rows, losses, matching; its checkpoint through exporter and runtime."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("scipy", reason="needs the train extra")

import pixelrt  # noqa: E402
from pixelrt.image import ImageSpec, prepare  # noqa: E402
from pixelrt.queries import Classes, Refer, Regions  # noqa: E402
from pixelrt_export.export import export_bundle  # noqa: E402
from pixelrt_export.families.psalm import FILL, MEAN, STD  # noqa: E402
from pixelrt_export.reference.psalm import Psalm  # noqa: E402
from pixelrt_export.tiny import psalm_exam  # noqa: E402
from pixelrt_export.tiny import psalm_prompts as prompts  # noqa: E402
from pixelrt_export.tiny.evaluate import SEED_BASE  # noqa: E402
from pixelrt_export.tiny.psalm_checkpoint import (  # noqa: E402
    QUERIES,
    SIDE,
    new_model,
    read_checkpoint,
    save_checkpoint,
)
from pixelrt_export.tiny.psalm_losses import Crutches, joint_loss  # noqa: E402
from pixelrt_export.tiny.psalm_matching import match  # noqa: E402
from pixelrt_export.tiny.psalm_rows import Packer, Rows  # noqa: E402
from pixelrt_export.tiny.psalm_tokenizer import read_prompts, vocab_size, write_tokenizer  # noqa: E402
from pixelrt_export.tiny.scene_cache import Batch, draw_batch, drawn_scenes  # noqa: E402
from pixelrt_export.tiny.scenes import scene  # noqa: E402
from pixelrt_export.tiny.tables import Report  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "psalm-tiny"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, scenes=60)
    return folder


@pytest.fixture(scope="module")
def net(words: Path) -> Psalm:
    """Random weights, as they are once stored in fp16."""
    torch.manual_seed(0)
    net = new_model(vocab_size(words))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.half().float())
    return net


@pytest.fixture(scope="module")
def packer(words: Path, net: Psalm) -> Packer:
    return Packer(read_prompts(words, QUERIES), net.config.image_tokens, net.config.image_size)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    arrays = drawn_scenes(tmp_path_factory.mktemp("scenes"), 6, processes=1, side=SIDE)
    return draw_batch(arrays, 3, np.random.default_rng(0), FILL)


# ---- rows -------------------------------------------------------------------------------------------------


def test_padding_is_the_runtime_s(batch: Batch, tmp_path: Path) -> None:
    arrays = drawn_scenes(tmp_path, 12, processes=1, side=SIDE)
    flat = next(k for k in range(12) if len({*arrays["sizes"][k].tolist()}) == 2)
    height, width = arrays["sizes"][flat]
    spec = ImageSpec.from_dict({"size": SIDE, "patch": 4, "mean": MEAN, "std": STD, "fill": FILL.tolist()})
    want = prepare(np.ascontiguousarray(arrays["images"][flat, :height, :width]), spec).pixels[0]
    one = {name: array[flat : flat + 1] for name, array in arrays.items()}
    for seed in range(20):  # half of the batches are mirrored
        got = draw_batch(one, 1, np.random.default_rng(seed), FILL).pixels[0].numpy()
        if np.allclose(got, want, atol=1e-6):
            return
    raise AssertionError("no batch shows the scene as the runtime prepares it")


def test_packed_prompts_do_not_see_each_other(net: Psalm, packer: Packer, batch: Batch) -> None:
    asked = packer.asked(batch, 2, random.Random(0))
    with torch.inference_mode():
        tokens = net.encode(batch.pixels).tokens
        rows = packer.pack(asked)
        queries, conditions = packer.read(net, rows, tokens)
        n = 0
        for b, row in enumerate(asked):
            for one in row:
                alone = packer.pack([[one]])
                q, c = packer.read(net, alone, tokens[b : b + 1])
                torch.testing.assert_close(queries[n], q[0], atol=1e-4, rtol=0)
                torch.testing.assert_close(conditions[n, : c.shape[1]], c[0], atol=1e-4, rtol=0)
                assert rows.valid[n].sum() == c.shape[1] and rows.image[n] == b
                n += 1
    assert n == len(rows.kind)


def test_a_region_of_an_earlier_frame_is_that_frame_s(net: Psalm, packer: Packer, tmp_path: Path) -> None:
    """Two frames mirrored alike; the prompt averages the first one's tokens and asks about the second."""
    arrays = drawn_scenes(tmp_path, 8, processes=1, side=SIDE, films=True)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        films = draw_batch(arrays, 4, rng, FILL, films=True)
        batch = draw_batch(arrays, 3, rng, FILL).joined(films)
        assert batch.before == [None, None, None, None, 3, None, 5]
        asked = packer.asked(batch, 1, random.Random(seed))
        followed = [(b, one) for b, row in enumerate(asked) for one in row if one.marked_in is not None]
        for b, one in followed:
            assert one.marked_in == batch.before[b] and one.kind == "region"
            labels = {t.label: t.name for t in batch.things[b]}
            for label, numbers in one.answers.items():
                assert labels[label] in {t.name for t in batch.things[one.marked_in] if t.label == label}
                for k in numbers:  # the region touches the thing where it was
                    region = one.regions[k]
                    height, width = region.shape
                    assert (region & (batch.labels[one.marked_in, :height, :width].numpy() == label)).any()
        with torch.inference_mode():
            tokens = net.encode(batch.pixels).tokens
            _, before = packer.read(net, packer.pack(asked), tokens)
            # The earlier frames' tokens alone; turned, for LayerNorm takes out what is added to all of a vector.
            tokens[[one.marked_in for _, one in followed]] *= -1
            rows = packer.pack(asked)
            _, after = packer.read(net, rows, tokens)
        moved = (before - after).abs().amax((1, 2)) > 1e-6
        later = torch.isin(rows.image, torch.tensor([b for b, _ in followed]))
        assert followed and (moved & later).sum() == len(followed)


def test_every_weight_that_is_read_learns(net: Psalm, packer: Packer, batch: Batch) -> None:
    crutches = Crutches(net)
    rows = packer.pack(packer.asked(batch, 2, random.Random(1)))
    loss, figures = joint_loss(net, crutches, packer, batch, rows, 1.0)
    loss.backward()
    assert all(torch.isfinite(x) for x in figures.values())
    idle = {name for name, p in net.named_parameters() if p.grad is None}
    assert idle == {"lm_head.weight", "predictor.query_feat.weight", "predictor.SEG_query_embed.weight"}
    assert all(p.grad is not None for p in crutches.parameters())
    net.zero_grad(set_to_none=True)


def test_matching_finds_the_masks() -> None:
    """Two targets, four queries: masks decide; where they are equal, the class does."""
    truth = torch.zeros(1, 5, 8, 8)
    truth[0, 0, :4], truth[0, 1, 4:] = 1, 1
    masks = torch.full((1, 4, 8, 8), -6.0)
    masks[0, 1] = masks[0, 2] = 12 * truth[0, 1] - 6
    masks[0, 3] = 12 * truth[0, 0] - 6
    scores = torch.zeros(1, 4, 3)
    scores[0, 2, 1] = 4
    wanted = torch.zeros(1, 5, 3)
    wanted[0, 0, 0] = wanted[0, 1, 1] = 1
    empty = torch.zeros(1, 0)
    rows = Rows(
        ids=empty,
        segment=empty,
        position=empty,
        image=empty,
        kind=torch.tensor([0]),
        pool=empty,
        valid=torch.ones(1, 3, dtype=torch.bool),
        queries=empty,
        targets=torch.tensor([[1, 2, 0, 0, 0]]),
        wanted=wanted,
        region_at=empty,
        region_of=empty,
        region_weights=empty,
    )
    n, q, t = match(masks, scores, truth, rows)
    assert n.tolist() == [0, 0] and dict(zip(t.tolist(), q.tolist(), strict=True)) == {0: 3, 1: 2}


# ---- the checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["random", "shipped"])
def test_the_runtime_answers_as_the_reference(weights: str, net: Psalm, words: Path, tmp_path: Path) -> None:
    """Through fp16 file, exporter and runtime: the mask it gives is one of the reference's."""
    checkpoint = tmp_path / "checkpoint"
    if weights == "random":
        save_checkpoint(net, words, checkpoint)
    else:
        shutil.copytree(SHIPPED, checkpoint)
    assert sum(f.stat().st_size for f in checkpoint.iterdir()) < 10e6
    again = read_checkpoint(checkpoint)
    if weights == "random":
        assert all((a == b).all() for a, b in zip(net.parameters(), again.parameters(), strict=True))
    segmenter = pixelrt.load(export_bundle(checkpoint, tmp_path / "bundle"))
    packer = Packer(read_prompts(checkpoint, QUERIES), net.config.image_tokens, net.config.image_size)
    drawn = scene(900_000_003, SIDE)
    frame = segmenter.encode(drawn.image)
    spec = ImageSpec.from_dict(segmenter.bundle.manifest["image"])
    region = np.zeros(drawn.labels.shape, bool)
    region[20:60, 30:80] = True
    listed = prompts.Asked("class", ("red circle", "blue star", "background"), {})
    cases = [
        (listed, Classes(["red circle", "blue star"], task="instance")),
        (prompts.Asked("sentence", ("the red circle",), {}), Refer("the red circle")),
        (prompts.Asked("region", (), {}, (region,)), Regions(boxes=[(30, 20, 80, 60)])),
    ]
    with torch.inference_mode():
        features = again.encode(torch.from_numpy(prepare(drawn.image, spec).pixels))
        keys = again.predictor.keys(features.levels)
        for asked, query in cases:
            rows = packer.pack([[asked]])
            queries, _ = packer.read(again, rows, features.tokens)
            masks = again.predictor(queries, keys, features.mask_features, rows.image)[-1].masks[0].numpy()
            got = segmenter.segment(frame, query).masks[0].low_res_logits
            assert min(np.abs(got - mask).max() for mask in masks) < 1e-3


def test_the_shipped_checkpoint_answers(tmp_path: Path) -> None:
    segmenter = pixelrt.load(export_bundle(SHIPPED, tmp_path / "bundle"))
    report = Report(psalm_exam.MEASURES, psalm_exam.KINDS, with_all=False)
    for k in range(10):
        for record in psalm_exam.examine(segmenter, "held-out seeds", SEED_BASE + k, SIDE):
            report.add(record)
    rows = report.tables()["held-out seeds"]
    # loose: the model card has the figures of 500 scenes
    assert rows["panoptic"]["pq"][0] > 0.8
    assert all(rows[kind]["iou"][0] > 0.8 for kind in ("sentence: name", "region: point", "region: box"))


@pytest.mark.slow
def test_smoke_training_resumes_and_writes_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pixelrt_export.tiny.psalm_train", "--smoke"]
    command += ["--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT / "export")
    trained = read_checkpoint(tmp_path / "checkpoint")
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert (tmp_path / "log.jsonl").read_text().count("\n") >= 1
    assert (tmp_path / "curves.png").stat().st_size > 2000
    steps = torch.load(tmp_path / "state.pt", weights_only=False)["step"]
    again = subprocess.run(
        command, check=True, timeout=300, cwd=ROOT / "export", capture_output=True, text=True
    )
    assert f"done: {steps} steps" in again.stdout  # its time is spent
