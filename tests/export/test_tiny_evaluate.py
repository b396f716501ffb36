"""The evaluation command: each measure against a second, slow implementation; a perfect and a silent model of each."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("scipy", reason="needs the train extra")

from PIL import Image
from pixelrt.errors import InputError
from pixelrt.evaluation import measures
from pixelrt.queries import Classes, Refer, Regions
from pixelrt_export.tiny import evaluate, pixellm_exam, psalm_exam
from pixelrt_export.tiny.backgrounds import GROUPS
from pixelrt_export.tiny.clips import clip
from pixelrt_export.tiny.failures import Failures
from pixelrt_export.tiny.pixellm_exam import Reply
from pixelrt_export.tiny.psalm_prompts import NAMES, expressions
from pixelrt_export.tiny.questions import MIX
from pixelrt_export.tiny.scenes import scene
from pixelrt_export.tiny.tables import Report
from pixelrt_export.tiny.things import Scene

BASE = evaluate.SEED_BASE

# ---- panoptic quality -------------------------------------------------------------------------------------


def panoptic_scenes(
    seed: int, classes: int, pictures: int
) -> list[tuple[dict[int, tuple[int, np.ndarray]], list[tuple[int, np.ndarray]]]]:
    """Blocks of a few classes, and the same shifted, swapped, dropped and invented."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(pictures):
        label_map, found_map = np.zeros((2, 24, 24), int)
        kinds = rng.integers(classes, size=8)
        for k in range(1, 5):
            y, x, h, w = *rng.integers(0, 16, 2), *rng.integers(4, 9, 2)
            label_map[y : y + h, x : x + w] = k
            dy, dx = rng.integers(-1, 2, 2)
            if rng.random() < 0.85:
                found_map[max(0, y + dy) : y + h + dy, max(0, x + dx) : x + w + dx] = k
        found_map[rng.integers(0, 20) :, 20:] = 5
        truth = {k: (int(kinds[k]), label_map == k) for k in np.unique(label_map) if k}
        found = [
            (int(kinds[k] if rng.random() < 0.8 else kinds[7]), found_map == k)
            for k in np.unique(found_map)
            if k
        ]
        out.append((truth, found))
    return out


def pq_by_the_text(pictures: list, classes: int) -> tuple[float, float, float]:
    """Kirillov et al., section 4: unique matches of IoU > 0.5, then sums of each class; pixel by pixel, all pairs."""
    values = []
    for c in range(classes):
        ious, lone_found, lone_truth = [], 0, 0
        for truth, found in pictures:
            wanted = [mask.ravel().tolist() for n, mask in truth.values() if n == c]
            got = [mask.ravel().tolist() for n, mask in found if n == c]
            pairs = []
            for i, a in enumerate(wanted):
                for j, b in enumerate(got):
                    both = sum(p and q for p, q in zip(a, b, strict=True))
                    either = sum(p or q for p, q in zip(a, b, strict=True))
                    if both / either > 0.5:
                        pairs.append((i, j, both / either))
            ious += [v for _, _, v in pairs]
            lone_truth += len(wanted) - len({i for i, _, _ in pairs})
            lone_found += len(got) - len({j for _, j, _ in pairs})
        if ious or lone_found or lone_truth:
            sq = sum(ious) / len(ious) if ious else 0.0
            rq = len(ious) / (len(ious) + lone_found / 2 + lone_truth / 2)
            values.append((sq * rq, sq, rq))
    return tuple(float(np.mean(v)) for v in zip(*values, strict=True))


def counts(truth: dict, found: list, classes: int) -> np.ndarray:
    """`measures.counts` of masks: label -> class and mask, and a list of the same, disjoint."""
    size = (found[0][1] if found else next(iter(truth.values()))[1]).shape
    label_map, drawn = np.zeros((2, *size), np.int32)
    for label, (_, mask) in truth.items():
        label_map[mask] = label
    for k, (_, mask) in enumerate(found, start=1):
        drawn[mask] = k
    kinds = {k: kind for k, (kind, _) in enumerate(found, start=1)}
    return measures.counts(label_map, {k: kind for k, (kind, _) in truth.items()}, drawn, kinds, classes)


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_is_that_of_the_text(seed: int) -> None:
    pictures = panoptic_scenes(seed, classes=4, pictures=6)
    table = sum(counts(truth, found, 4) for truth, found in pictures)
    got = measures.quality(table)
    np.testing.assert_allclose(got, pq_by_the_text(pictures, 4), atol=1e-12)
    assert 0.2 < got[0] < 0.95


# ---- video ------------------------------------------------------------------------------------------------


def contour_accuracy_by_hand(want: np.ndarray, got: np.ndarray) -> float:
    """All pairs of contour pixels. DAVIS: a pixel is on the contour if its right, lower or lower right one differs."""

    def contour(mask: np.ndarray) -> list[tuple[int, int]]:
        h, w = mask.shape
        return [
            (y, x)
            for y in range(h)
            for x in range(w)
            if any(
                mask[y, x] != mask[min(y + dy, h - 1), min(x + dx, w - 1)]
                for dy, dx in ((0, 1), (1, 0), (1, 1))
            )
        ]

    slack = math.ceil(0.008 * math.sqrt(want.shape[0] ** 2 + want.shape[1] ** 2))
    ours, theirs = contour(got), contour(want)
    if not ours or not theirs:
        return float(not ours and not theirs)

    def share(points: list, line: list) -> float:
        hits = [any((y - b) ** 2 + (x - a) ** 2 <= slack**2 for b, a in line) for y, x in points]
        return sum(hits) / len(hits)

    p, r = share(ours, theirs), share(theirs, ours)
    return 2 * p * r / (p + r) if p + r else 0.0


def test_contour_accuracy_is_that_of_all_pairs() -> None:
    film = clip(4, 56)
    pairs = []
    for before, after in zip(film.frames[::3], film.frames[2::3], strict=False):
        pairs += [(after.mask(t), before.mask(t)) for t in before.things]
    empty = np.zeros_like(pairs[0][0])
    pairs += [(empty, pairs[0][0]), (pairs[0][0], empty), (empty, empty)]
    values = [measures.contour_accuracy(a, b) for a, b in pairs]
    np.testing.assert_allclose(values, [contour_accuracy_by_hand(a, b) for a, b in pairs], atol=1e-12)
    assert values[-3:] == [0, 0, 1] and 0.1 < np.mean(values) < 0.95
    mask = pairs[0][0]
    assert measures.contour_accuracy(mask, mask) == 1


# ---- models that know everything, or nothing --------------------------------------------------------------


def reported(records: list, exam: Any) -> dict:
    report = Report(exam.MEASURES, exam.KINDS, with_all=exam is pixellm_exam)
    for record in records:
        report.add(record)
    assert report.text().count("\n") > 2 and report.markdown().startswith("| held-out seeds")
    return report.tables()


def test_scores_of_a_perfect_and_of_a_silent_pixellm() -> None:
    truth: dict[bytes, dict[str, Reply]] = {}
    for group, seed in evaluate.places(4, BASE):
        drawn = scene(seed, 140, GROUPS[group])
        for q in pixellm_exam.questions_about(drawn, seed):
            masks = np.array([drawn.mask(t) for t in q.targets]).reshape(-1, *drawn.labels.shape)
            truth.setdefault(drawn.image.tobytes(), {})[q.text] = Reply([], q.answer, masks)

    def silent(image: np.ndarray, text: str) -> Reply:
        return Reply([1], "", np.zeros((0, *image.shape[:2]), bool))

    asked = list(evaluate.ask(lambda i, t: truth[i.tobytes()][t], 4, BASE, 140, against=silent))
    perfect = reported([record for record, _ in asked], pixellm_exam)
    assert list(perfect) == list(GROUPS)
    row = perfect["held-out seeds"]["all"]
    for measure in pixellm_exam.MEASURES:
        assert row[measure] == (1, 0)
    assert set(perfect["held-out seeds"]) <= {"all", *MIX}
    mute = reported([record for record, _ in evaluate.ask(silent, 4, BASE, 140)], pixellm_exam)
    row = mute["held-out seeds"]["all"]
    assert row["exact"] == row["iou"] == row["ciou"] == (0, 0) and row["refused"] == (1, 0)
    assert 0 < row["giou"][0] < 1  # no mask for no target is right
    assert pixellm_exam.agreement(asked)["same_tokens"] == 0


@dataclass
class Oracle:
    """A PSALM that knows the scenes; with `blind`, one that always says what is at the left."""

    known: dict[bytes, Scene]
    blind: bool = False

    def encode(self, image: np.ndarray) -> Scene:
        return self.known[image.tobytes()]

    def segment(self, drawn: Scene, query: Any) -> Any:
        things = drawn.things[:1] if self.blind else drawn.things
        if isinstance(query, Classes):
            segments = [SimpleNamespace(id=t.label, category=NAMES.index(t.name)) for t in things]
            return SimpleNamespace(label_map=drawn.labels, segments=segments)
        if isinstance(query, Refer):
            said = {text: meant for each in expressions(drawn.things).values() for text, meant in each}
            meant = things if self.blind else said[query.sentences[0]]
            return SimpleNamespace(masks=[SimpleNamespace(mask=drawn.mask(t)) for t in meant])
        assert isinstance(query, Regions)
        found = []
        for kind, region in query.each():
            if kind == "boxes":
                x0, y0, x1, y1 = region
                inside = drawn.labels[y0:y1, x0:x1]
            else:
                inside = (
                    drawn.labels[region]
                    if kind == "masks"
                    else np.array([drawn.labels[y, x] for x, y in region])
                )
            best = max(things, key=lambda t: (inside == t.label).sum() / drawn.mask(t).sum())
            found.append(SimpleNamespace(mask=drawn.mask(best)))
        return SimpleNamespace(masks=found)


def test_scores_of_a_perfect_and_of_a_blind_psalm(monkeypatch: pytest.MonkeyPatch) -> None:
    known, films = {}, {}
    for group, seed in evaluate.places(5, BASE):
        names = GROUPS[group]
        drawn = scene(seed, 160, names)
        known[drawn.image.tobytes()] = drawn
        if seed % psalm_exam.CLIP_EVERY == 0:
            film = clip(seed, 160, names)
            films[film.frames[0].image.tobytes()] = film

    class Follower(Oracle):
        def track(self, frames: list, regions: Regions) -> Any:
            film = films[frames[0].tobytes()]
            for frame in film.frames[:1] * len(frames) if self.blind else film.frames:
                numbers = np.zeros(frame.labels.shape, np.int32)
                for number, thing in enumerate(film.tracked(), start=1):
                    numbers[frame.mask(thing)] = number
                yield SimpleNamespace(label_map=numbers)

    for blind in (False, True):
        monkeypatch.setattr(evaluate.pixelrt, "load", lambda path, blind=blind: Follower(known, blind))
        tables = reported([r for r, _ in evaluate.ask_psalm(Path(), 5, BASE, 160)], psalm_exam)
        for rows in tables.values():
            values = [v[0] for row in rows.values() for k, v in row.items() if isinstance(v, tuple)]
            assert {"panoptic", "video", "region: point", "sentence: name"} <= set(rows)
            assert set(values) == {1} if not blind else np.mean(values) < 0.85
            if blind:  # the first frame's masks, again and again
                assert 0.05 < rows["video"]["jf"][0] < 0.95 and rows["panoptic"]["pq"][0] < 0.5


def test_failures_are_drawn(tmp_path: Path) -> None:
    failures, drawn = Failures(), scene(3)
    assert failures.write(tmp_path) is None
    rng = random.Random(0)
    for q in pixellm_exam.questions_about(drawn, 3):
        reply = Reply([], "There is no way." * 9, np.zeros((rng.randrange(2), *drawn.labels.shape), bool))
        failures.add(pixellm_exam.record("held-out seeds", 3, drawn, q, reply))
    assert all(len(kept) == 1 for kept in failures.kept.values())  # all of one seed
    file = failures.write(tmp_path)
    assert file is not None
    with Image.open(file) as page:
        assert page.width > 1000 and len(page.getcolors(1 << 22)) > 1000


def test_the_command_names_what_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    assert evaluate.main() == 2
    assert "neither a bundle nor a checkpoint" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="'bert' checkpoint"):
        evaluate.family_of(tmp_path)
    for kind, family in evaluate.FAMILIES.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert evaluate.family_of(tmp_path) == (family, False)


def test_panoptic_quality_by_hand() -> None:
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :4], masks[1, 4:8, :5], masks[2, 8:] = True, True, True
    truth = {1: (0, masks[0]), 2: (1, masks[1]), 3: (1, masks[2])}
    table = counts(truth, [(0, masks[0]), (1, masks[1]), (1, masks[2])], len(NAMES))
    assert measures.quality(table) == (1, 1, 1)
    half = masks[0].copy()
    half[3] = False  # IoU 0.75; the second has another's class, the third is missed
    table = counts(truth, [(0, half), (2, masks[1])], len(NAMES))
    np.testing.assert_allclose(table[:3], [[0.75, 1, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]])
    np.testing.assert_allclose(measures.quality(table), (0.25, 0.25, 1 / 3))
    twice = counts({1: (0, masks[0])}, [(0, half), (0, masks[0] & ~half)], len(NAMES))
    np.testing.assert_allclose(twice[0], [0.75, 1, 1, 0])
