"""The golden PSALM through its exported bundle and the runtime, query by query (see tests/golden/psalm)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.bundle import Bundle
from pixelrt.engine_ort import OrtBackend
from pixelrt.families.psalm import Psalm
from pixelrt.families.psalm_regions import pooling_weights
from pixelrt.image import ImageSpec, prepare
from pixelrt.queries import Classes, Refer, Regions, Track
from pixelrt.segmenter import open_bundle

Case = Callable[[str], dict[str, Any]]
GOLDEN = toy.golden()
NAMES = GOLDEN["class_names"][:-1]
THINGS = [name for name, thing in zip(NAMES, GOLDEN["is_thing_list"], strict=True) if thing]
# Both sides are fp32 and sum in different orders. The largest values: tokens and conditions 5, mask logits 16,
# class logits 10, scores 1; differences seen are a third of each bound.
TOLERANCE = {"tokens": 1e-5, "masks": 2e-4, "logits": 1e-4, "score": 2e-5}


@pytest.fixture(scope="module", params=[False, True], ids=["in_place", "compat"])
def psalm(request: Any, golden_psalm_bundle: Path) -> Psalm:
    bundle = Bundle.read(golden_psalm_bundle)
    opened = open_bundle(bundle, OrtBackend(bundle, compatible=request.param))
    assert isinstance(opened, Psalm)
    return opened


@pytest.fixture
def picture(golden_psalm_case: Case) -> np.ndarray:
    return golden_psalm_case("panoptic")["raw.image_uint8_hwc"]


def test_preprocessing_equals_the_original(golden_psalm_bundle: Path, golden_psalm_case: Case) -> None:
    spec = ImageSpec.from_dict(Bundle.read(golden_psalm_bundle).manifest["image"])
    for name, raw, wanted in (
        ("panoptic", "raw.image_uint8_hwc", "in.images"),
        ("video", "raw.vp_image_uint8_hwc", "in.vp_images"),
    ):
        case = golden_psalm_case(name)
        got = prepare(case[raw], spec)
        assert np.array_equal(got.pixels, case[wanted])
        outside = np.ones(case["in.padding_mask"].shape, bool)
        outside[: got.content[0], : got.content[1]] = False
        assert np.array_equal(outside, case["in.padding_mask"] > 0)


def stored_vectors(case: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Region vectors over the pixels that the original drew."""
    vectors = []
    for points in case["region.sampled_points_yx"]:
        count = np.zeros((128, 128))
        np.add.at(count, tuple(np.rint(points * 128).astype(int).T), 1)
        vectors.append(pooling_weights(count, 128, len(tokens)) @ tokens)
    return np.stack(vectors)


@pytest.mark.parametrize("name", ["panoptic", "referring", "region_box", "video"])
def test_logits_equal_the_original(
    psalm: Psalm, golden_psalm_case: Case, picture: np.ndarray, name: str
) -> None:
    case, frame, vectors = golden_psalm_case(name), psalm.encode(picture), None
    if name == "panoptic":
        tail = psalm.prompt.classes([*NAMES, psalm.prompt.background])
        wanted = case["predictor.out.pred_class_name_logits"][0]
    elif name == "referring":
        tail = psalm.prompt.sentence(["the blue disc on the right", "round thing"])
        wanted = case["predictor.out.pred_SEG_logits"][0]
    else:
        tail, wanted = psalm.prompt.regions(3), case["predictor.out.pred_region_logits"].T
        source = psalm.encode(case["raw.vp_image_uint8_hwc"]) if name == "video" else frame
        vectors = stored_vectors(case, source.tokens)
        want = case["llm.inputs_embeds"][0][case["seq.region_embedding_mask"] > 0]
        np.testing.assert_allclose(vectors, want, rtol=0, atol=TOLERANCE["tokens"])
    for _ in range(2):  # the second time on the kept cache
        logits, scores, _ = psalm._decode(frame, tail, vectors)
        np.testing.assert_allclose(
            logits, case["predictor.out.pred_masks"][0], rtol=0, atol=TOLERANCE["masks"]
        )
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=TOLERANCE["logits"])


def test_every_task_on_one_frame(psalm: Psalm, golden_psalm_case: Case, picture: np.ndarray) -> None:
    """Answers equal the original's, whatever was asked before; the encoder runs once."""
    frame, calls = psalm.encode(picture), []
    psalm._encoder, encoder = (lambda inputs: calls.append(inputs) or encoder(inputs)), psalm._encoder
    try:
        for _ in range(2):
            case = golden_psalm_case("panoptic")
            got = psalm.segment(frame, Classes(NAMES, things=THINGS))
            assert np.array_equal(got.label_map, case["post.panoptic_seg"])
            info = [{"id": s.id, "isthing": s.is_thing, "category_id": s.category} for s in got.segments]
            assert info == GOLDEN["cases"]["panoptic"]["segments_info"]
            # As many as queries, of all classes; the original's panoptic run kept those of things.
            got = psalm.segment(frame, Classes(NAMES, "instance", things=THINGS))
            assert len(got.masks) == toy.QUERIES
            things = [m for m, k in zip(got.masks, got.category, strict=True) if NAMES[k] in THINGS]
            order = np.argsort(-case["post.instances.scores"])
            for mask, k in zip(things, order, strict=True):
                assert mask.score == pytest.approx(
                    float(case["post.instances.scores"][k]), abs=TOLERANCE["score"]
                )
                assert np.array_equal(mask.mask, case["post.instances.pred_masks"][k])
            got = psalm.segment(frame, Classes(NAMES, "semantic"))
            sums = golden_psalm_case("semantic")["post.sem_seg"]
            assert np.array_equal(got.label_map, sums.argmax(0))
            case = golden_psalm_case("referring")
            got = psalm.segment(frame, Refer(["the blue disc on the right", "round thing"]))
            best = int(case["post.instances.scores"].argmax())
            assert np.array_equal(got.masks[0].mask, case["post.instances.pred_masks"][best])
            assert got.masks[0].score == pytest.approx(
                float(case["post.instances.scores"][best]), abs=TOLERANCE["score"]
            )
    finally:
        psalm._encoder = encoder
    assert calls == []


def test_boxes_and_masks_are_one_prompt(psalm: Psalm, golden_psalm_case: Case, picture: np.ndarray) -> None:
    """A box, its mask, and near what the original's random pixels gave."""
    case, frame = golden_psalm_case("region_box"), psalm.encode(picture)
    masks = case["raw.prompt_masks_hw"]
    boxes = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    by_box = psalm.segment(frame, Regions(boxes=boxes))
    by_mask = psalm.segment(frame, Regions(masks=list(masks)))
    tracked = psalm.segment(picture, Track(frame, Regions(masks=list(masks))))
    for a, b, c, best in zip(
        by_box.masks, by_mask.masks, tracked.masks, case["post.instances.scores"].max(0), strict=True
    ):
        assert a.score == b.score and np.array_equal(a.mask, b.mask)
        assert a.score == pytest.approx(float(best), abs=0.02)  # other pixels were averaged
        assert c.score <= a.score
    assert [mask.label for mask in by_box.masks] == ["box 1", "box 2", "box 3"]


def test_video_uses_the_other_picture(psalm: Psalm, golden_psalm_case: Case, picture: np.ndarray) -> None:
    """Prompts of the first picture: with its own tokens scores are near the original's."""
    case = golden_psalm_case("video")
    first = case["raw.vp_image_uint8_hwc"]
    ys, xs = (np.arange(n) * 128 // 100 for n in (75, 100))  # masks at the original size, nearest
    masks = [mask[ys][:, xs] for mask in case["in.vp_region_masks"]]
    results = list(psalm.track([first, picture], Regions(masks=masks)))
    assert [np.array_equal(a.mask, b > 0) for a, b in zip(results[0].masks, masks, strict=True)] == [True] * 3
    assert results[1].label_map.shape == picture.shape[:2]
    best = case["post.instances.scores"].max(0)
    for mask, want in zip(results[1].masks, best, strict=True):
        assert mask.score <= want + 0.02
    assert results[1].masks[0].score == pytest.approx(float(best[0]), abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_class_lists_of_any_length(psalm: Psalm, picture: np.ndarray, count: int) -> None:
    got = psalm.segment(picture, Classes([f"c{i}" for i in range(count)], "semantic"))
    assert got.label_map.max() < count
