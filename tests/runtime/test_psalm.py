"""How PSALM is driven, with graphs that only add: what runs once, what is read, what reaches the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psalm_toy as toy
import pytest
from pixelrt.errors import InputError
from pixelrt.families import psalm as family
from pixelrt.queries import Classes, Refer, Regions, Track
from pixelrt.results import Instances, Panoptic, Semantic

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (75, 100, 3), np.uint8)
OTHER = RNG.integers(0, 256, (75, 100, 3), np.uint8)


@pytest.fixture(params=["in_place", "concat"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> toy.Toy:
    made = toy.Toy(tmp_path, request.param)
    for q in range(toy.QUERIES):  # one block of the picture each
        made.masks[q, 4 * (q // 5) : 4 * (q // 5) + 4, 5 * (q % 5) : 5 * (q % 5) + 5] = 6
    made.scores[:] = -9
    return made


def block(x: int, y: int) -> np.ndarray:
    """Where query 5 y + x lies in the picture, a little inside."""
    mask = np.zeros(PICTURE.shape[:2], bool)
    mask[round(12.5 * y) + 2 : round(12.5 * y) + 10, round(15.625 * x) + 2 : round(15.625 * x) + 13] = True
    return mask


def test_pixels_are_padded_with_128(bundle: toy.Toy) -> None:
    frame = bundle.load().encode(PICTURE)
    pixels = bundle.encoder.calls[0]["pixels"]
    assert frame.content == (96, 128) and pixels.shape == (1, 3, 128, 128)
    wanted = (128 - np.float32(toy.MEAN)) / np.float32(toy.STD)
    np.testing.assert_allclose(
        pixels[0, :, 96:].transpose(1, 2, 0), np.broadcast_to(wanted, (32, 128, 3)), rtol=1e-6
    )


def test_the_encoder_runs_once_a_frame(bundle: toy.Toy) -> None:
    """Head and image are read for the first prompt only; every later one reads its own part."""
    psalm = bundle.load()
    frame = psalm.encode(PICTURE)
    start = len(psalm.prompt.head) + toy.TOKENS
    queries = [
        Refer("the mug"),
        Classes(["a", "bc"]),
        Regions(points=[(5, 5)]),
        "the mug",
        Classes(["a"], "semantic"),
    ]
    for query in queries:
        psalm.segment(frame, query)
    assert len(bundle.encoder.calls) == 1
    positions = [call["position_ids"][0] for call in bundle.language.calls]
    assert [int(p[0]) for p in positions] == [0, len(psalm.prompt.head), *[start] * 4]
    assert [bool(np.all(np.diff(p) == 1)) for p in positions] == [True] * 6


def test_what_was_asked_before_changes_nothing(bundle: toy.Toy) -> None:
    """Queries and conditions of a prompt on a used frame are those on a fresh one, to the rounding of a sum."""
    psalm = bundle.load()
    used = psalm.encode(PICTURE)
    queries = [
        Refer("the red mug"),
        Classes(["sky", "a tree"]),
        Regions(boxes=[(3, 4, 50, 60)]),
        Refer("x" * 300),
    ]
    for query in [*queries, *queries[::-1]]:
        psalm.segment(used, query)
        got = bundle.pixel_decoder.calls[-1]
        psalm.segment(psalm.encode(PICTURE), query)
        want = bundle.pixel_decoder.calls[-1]
        for name in ("queries", "conditions", "condition_kind"):
            np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=0.05)
        assert np.array_equal(got["mask_features"], want["mask_features"])


def test_conditions_are_the_means_of_their_tokens(bundle: toy.Toy, tmp_path: Path) -> None:
    """Against the toy's sum over the whole prompt, written out."""
    psalm = bundle.load()
    frame = psalm.encode(PICTURE)
    psalm.segment(frame, Classes(["sky", "tree"]))
    call = bundle.pixel_decoder.calls[-1]
    tail = psalm.prompt.classes(["sky", "tree", "background"])
    rows = np.concatenate([psalm.table(psalm.prompt.head), frame.tokens, psalm.table(tail.ids)])
    hidden = np.cumsum(rows * np.arange(1, len(rows) + 1, dtype=np.float32)[:, None], axis=0)[-len(tail) :]
    for k in (1, 2, 3):
        np.testing.assert_allclose(
            call["conditions"][0, k - 1], hidden[tail.condition == k].mean(0), rtol=1e-4, atol=0.05
        )
    np.testing.assert_allclose(call["queries"][0], hidden[tail.mask_rows], rtol=1e-4, atol=0.05)
    assert call["condition_kind"].tolist() == [0]


def test_long_prompts_are_read_in_parts(bundle: toy.Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    psalm = bundle.load()
    query = Classes([f"class {k}" for k in range(40)])
    psalm.segment(PICTURE, query)
    whole = bundle.pixel_decoder.calls[-1]
    monkeypatch.setattr(family, "ROWS_MAX", 50)
    bundle.language.calls.clear()
    psalm.segment(PICTURE, query)
    parts = bundle.pixel_decoder.calls[-1]
    assert len(bundle.language.calls) > 5
    assert max(call["inputs_embeds"].shape[1] for call in bundle.language.calls[1:]) <= 50
    for name in ("queries", "conditions"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=2e-5, atol=0.5)
    assert parts["conditions"].shape[1] == 41


def test_regions_stand_in_the_prompt(bundle: toy.Toy) -> None:
    psalm = bundle.load()
    frame = psalm.encode(PICTURE)
    regions = Regions(points=[(50, 40)], boxes=[(0, 0, 100, 75)])
    vectors = psalm.region_vectors(frame, regions)
    psalm.segment(frame, regions)
    tail = psalm.prompt.regions(2)
    read = bundle.language.calls[-1]["inputs_embeds"][0][-len(tail) :]
    assert np.array_equal(read[tail.condition > 0], vectors)
    assert np.array_equal(read[tail.condition == 0], psalm.table(tail.ids[tail.condition == 0]))
    assert bundle.pixel_decoder.calls[-1]["condition_kind"].tolist() == [2]


def test_results_and_their_types(bundle: toy.Toy) -> None:
    psalm = bundle.load()
    frame = psalm.encode(PICTURE)
    bundle.scores[3, 0] = bundle.scores[7, 1] = 9
    bundle.scores[:, 2] = 0  # background
    panoptic = psalm.segment(frame, Classes(["sky", "tree"], things=["tree"]))
    assert isinstance(panoptic, Panoptic)
    assert [(s.label, s.is_thing) for s in panoptic.segments] == [("sky", False), ("tree", True)]
    assert isinstance(psalm.segment(frame, Classes(["sky", "tree"], "instance")), Instances)
    assert isinstance(psalm.segment(frame, Classes(["sky", "tree"], "semantic")), Semantic)
    answer = psalm.segment(frame, "the mug")
    assert answer.masks[0].mask[block(3, 0)].all() and answer.masks[0].label == "the mug"
    for result in (panoptic, answer):
        assert list(result.timing) == ["language", "pixel_decoder", "masks"]


def test_refused(bundle: toy.Toy) -> None:
    psalm = bundle.load()
    with pytest.raises(InputError, match=r"a psalm bundle cannot answer a list\. It takes Classes"):
        psalm.segment(PICTURE, ["sky"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no sentence"):
        psalm.segment(PICTURE, " ")
    psalm.max_positions = 500
    with pytest.raises(InputError, match=r"positions; this model has 500\. Name fewer classes"):
        psalm.segment(PICTURE, Classes([f"class {k}" for k in range(99)]))
    assert not bundle.pixel_decoder.calls


# ---- video


def following(bundle: toy.Toy, where: list[list[int]]) -> list[np.ndarray]:
    """Let the decoder find object r of frame f at query where[f][r]; gives the region vectors it was asked with."""
    asked: list[np.ndarray] = []

    def decode(inputs: dict, into: dict) -> dict:
        step = len(asked)
        tail = bundle.load().prompt.regions(len(where[0]))
        read = bundle.language.calls[-1]["inputs_embeds"][0][-len(tail) :]
        asked.append(read[tail.condition > 0])
        scores = np.full((toy.QUERIES, len(where[0])), -9, np.float32)
        for r, q in enumerate(where[step]):
            scores[q, r] = 5
        return {"mask_logits": bundle.masks[None], "scores": scores[None]}

    bundle.pixel_decoder.function = decode
    return asked


def pictures(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, PICTURE.shape, np.uint8) for i in range(count)]


def test_memory_is_the_frame_before(bundle: toy.Toy) -> None:
    where = [[1, 7], [2, 8], [3, 9]]
    asked = following(bundle, where)
    psalm, frames = bundle.load(), pictures(4)
    marked = [block(0, 0), block(1, 1)]
    results = list(psalm.track(frames, Regions(masks=marked)))
    assert np.array_equal(results[0].label_map, marked[0] + 2 * marked[1])
    for result, (a, b) in zip(results[1:], where, strict=True):
        assert result.masks[0].mask[block(a % 5, a // 5)].all()
        assert (result.label_map[block(b % 5, b // 5)] == 2).all()
    sources = [(frames[0], marked)] + [(frames[i], [mask.mask for mask in results[i].masks]) for i in (1, 2)]
    for got, (picture, masks) in zip(asked, sources, strict=True):
        want = psalm.region_vectors(psalm.encode(picture), Regions(masks=masks))
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_without_memory_the_first_picture_counts(bundle: toy.Toy) -> None:
    asked = following(bundle, [[1, 7], [2, 8], [3, 9]])
    list(bundle.load().track(pictures(4), Regions(masks=[block(0, 0), block(1, 1)]), memory=False))
    assert all(np.array_equal(vectors, asked[0]) for vectors in asked)


@pytest.mark.parametrize("why", ["overlap", "empty"])
def test_what_is_not_safe_is_not_remembered(bundle: toy.Toy, why: str) -> None:
    """Masks that coincide, or one that is empty: the vectors before are used again, then the next good ones."""
    asked, good = following(bundle, [[2, 8], [3, 9], [4, 11]]), bundle.masks
    bundle.masks = good.copy() if why == "overlap" else np.full_like(good, -6)
    bundle.masks[[2, 8] if why == "overlap" else [2]] = good[2]
    tracking = bundle.load().track(pictures(4), Regions(masks=[block(0, 0), block(1, 1)]))
    unsafe = [next(tracking), next(tracking)][1]
    assert bool(unsafe.masks[1].mask.any()) == (why == "overlap")
    bundle.masks = good
    list(tracking)
    assert np.array_equal(asked[1], asked[0])
    assert not np.array_equal(asked[2], asked[1])


def test_objects_marked_by_points_are_found_first(bundle: toy.Toy) -> None:
    asked = following(bundle, [[1, 7], [2, 8]])
    results = list(bundle.load().track(pictures(2), Regions(points=[(20, 5), (40, 20)])))
    assert len(asked) == 2 and np.array_equal(asked[0], asked[1])
    assert results[0].masks[0].label == "point 1" and (results[0].label_map[block(1, 0)] == 1).all()


def test_track_query_takes_prompts_from_another_picture(bundle: toy.Toy) -> None:
    asked = following(bundle, [[1], [2]])
    psalm = bundle.load()
    first = psalm.encode(OTHER)
    result = psalm.segment(PICTURE, Track(first, Regions(masks=[block(0, 0)])))
    assert np.array_equal(asked[0], psalm.region_vectors(first, Regions(masks=[block(0, 0)])))
    assert result.masks[0].mask[block(1, 0)].all()
