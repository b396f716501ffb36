"""The published formats, read; each malformed one gets a sentence. Models that know the truth score one."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixelrt.errors import InputError
from pixelrt.evaluation import annotations, coco_panoptic, davis, refer_file
from pixelrt.evaluation.benchmark import Options
from pixelrt.evaluation.session import DATASETS, check_bundles, open_benchmark
from pixelrt.queries import Classes, Refer, Track

from tests.evaluation import miniature as mini

pytest.importorskip("pycocotools", reason="needs the eval extra")
pytest.importorskip("scipy", reason="needs the eval extra")

PICTURES = [mini.drawn(seed) for seed in range(3)]
QUESTIONS = [[("all three", (1, 2, 3)), ("the star", (2,))], [("two", (1, 3))], [("one", (3,))]]


def film(seed: int, count: int = 5) -> list[mini.Picture]:
    """Things that move to the right by three pixels a frame."""
    first = mini.drawn(seed)
    return [
        replace(first, image=np.roll(first.image, 3 * t, 1), labels=np.roll(first.labels, 3 * t, 1))
        for t in range(count)
    ]


FILMS = {"bear": film(0), "camel": film(1)}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "refcoco": lambda root: mini.write_refcoco(root, PICTURES),
    "muse": lambda root: mini.write_muse(root, PICTURES, QUESTIONS),
    "coco-panoptic": lambda root: mini.write_coco(root, PICTURES, stuff=mini.NAMES[2:]),
    "coco-instance": lambda root: mini.write_coco(root, PICTURES),
    "davis": lambda root: mini.write_davis(root, FILMS),
}


class Oracle:
    """Answers with the truth; moved by `shift` pixels. Knows pictures by size-independent means: their order."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.bundle = SimpleNamespace(sha256="0" * 64)
        self.codebook = SimpleNamespace(ids=(7, 8))
        self.prompt = SimpleNamespace(
            template="A <im_start><image><im_end>\n{question} B:",
            tokenizer=SimpleNamespace(id_to_token=lambda token: f"[SEG{token - 7}]"),
        )
        self.asked: list[Any] = []

    def encode(self, image: np.ndarray) -> Any:
        every = [*PICTURES, *FILMS["bear"], *FILMS["camel"]]
        distances = [np.abs(image.astype(int) - p.image).mean() for p in every]  # JPEG is nearly the same
        picture = every[int(np.argmin(distances))]
        return SimpleNamespace(image=image, content=picture.size, picture=picture)

    def mask(self, picture: mini.Picture, label: int) -> Any:
        bits = np.roll(picture.mask(label), self.shift, 1)
        logits = np.where(bits, 9.0, -9.0).astype(np.float32)
        box = (0, 0, 1, 1) if bits.any() else None
        from pixelrt import rle

        return SimpleNamespace(
            mask=bits, score=0.9, box=box, low_res_logits=logits, rle=lambda: rle.encode(bits)
        )

    def segment(self, frame: Any, query: Any, max_new_tokens: int = 1) -> Any:
        self.asked.append(query)
        picture = frame.picture
        if isinstance(query, Track):
            marked = [int(np.median(query.first.picture.labels[m])) for m in query.regions.masks]
            labels = np.zeros(picture.size, np.int32)
            for k, label in enumerate(marked, start=1):
                labels[np.roll(picture.mask(label), self.shift, 1)] = k
            return SimpleNamespace(label_map=labels, masks=[self.mask(picture, label) for label in marked])
        if isinstance(query, Classes):
            from pixelrt.results import Instances

            found = [
                (k, self.mask(picture, label))
                for label, name in picture.names.items()
                for k in [query.names.index(name)]
            ]
            return Instances(picture.size, [m for _, m in found], [k for k, _ in found], [])
        text = " ".join(query.sentences) if isinstance(query, Refer) else query
        wanted = [k for k, name in picture.names.items() if name in text]
        for line in (line for each in QUESTIONS for line in each):
            wanted = list(line[1]) if line[0] in text and not wanted else wanted
        return SimpleNamespace(masks=[self.mask(picture, label) for label in wanted[::-1]])


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Path]:
    return lambda dataset: WRITERS[dataset](tmp_path)


def answered(dataset: str, folder: Path, family: str, oracle: Oracle, **options: Any) -> dict[str, float]:
    benchmark = open_benchmark(dataset, folder, Options(**options))
    records = [benchmark.ask[family](oracle, item) for item in benchmark.items]
    return benchmark.scores(benchmark.items, json.loads(json.dumps(records)))


@pytest.mark.parametrize(
    ("dataset", "family"),
    [
        ("refcoco", "pixellm"),
        ("refcoco", "psalm"),
        ("muse", "pixellm"),
        ("coco-instance", "psalm"),
        ("davis", "psalm"),
    ],
)
def test_a_model_that_knows_the_truth(dataset: str, family: str, made: Callable[[str], Path]) -> None:
    folder = made(dataset)
    perfect = answered(dataset, folder, family, Oracle())
    values = [v for name, v in perfect.items() if name not in ("APm", "APl")]  # no object is that large
    assert values == pytest.approx([1.0] * len(values), abs=1e-9)
    moved = answered(dataset, folder, family, Oracle(shift=2))
    assert all(0.05 < v < 0.95 for name, v in moved.items() if name not in ("AP50", "AP75", "APm", "APl"))


def test_refcoco_is_asked_as_the_papers_do(made: Callable[[str], Path]) -> None:
    folder, oracle = made("refcoco"), Oracle()
    answered("refcoco", folder, "pixellm", oracle)
    assert len(oracle.asked) == 18  # every sentence
    assert oracle.asked[0] == (
        "A <im_start><image><im_end>\n What is the red circle in this image? Please output segmentation mask. "
        "B: [SEG0] [SEG1]."
    )
    answered("refcoco", folder, "pixellm", oracle, generate=True, question="Segment {sent}.")
    assert oracle.asked[18] == "Segment the red circle."
    answered("refcoco", folder, "psalm", oracle)
    assert oracle.asked[36].sentences == ("The red circle", "red circle")


def test_muse_counts_surplus_and_missing_masks(made: Callable[[str], Path]) -> None:
    """By hand: one target of the first question is missed, and two masks too many are drawn for the second."""
    folder, oracle = made("muse"), Oracle()
    benchmark = open_benchmark("muse", folder, Options())
    p = PICTURES[0]

    def other(frame: Any, query: Any, max_new_tokens: int = 1) -> Any:
        labels = (1, 2) if "all three" in query else (2, 1, 3)
        return SimpleNamespace(masks=[oracle.mask(frame.picture, k) for k in labels])

    oracle.segment = other  # type: ignore[method-assign]
    record = benchmark.ask["pixellm"](oracle, benchmark.items[0])
    area = {k: int(p.mask(k).sum()) for k in (1, 2, 3)}
    want = [
        (area[1], area[1]),
        (area[2], area[2]),
        (0, area[3]),
        (area[2], area[2]),
        (0, area[1]),
        (0, area[3]),
    ]
    assert sorted(record["overlaps"]) == sorted(want) and record["most"] == 5  # 5 drawn, 4 wanted
    scores = benchmark.scores(benchmark.items[:1], [record])
    assert scores["gIoU"] == pytest.approx(3 / 5)
    assert scores["cIoU"] == pytest.approx((area[1] + 2 * area[2]) / (2 * sum(area.values())))


def test_panoptic_records_of_the_truth_itself(tmp_path: Path) -> None:
    """A crowd and void: what is drawn there is no invention, what is drawn elsewhere is."""
    labels = PICTURES[0].labels.astype(np.int64)
    labels[:6, :6] = 250
    picture = replace(PICTURES[0], labels=labels)
    benchmark = open_benchmark(
        "coco-panoptic", mini.write_coco(tmp_path, [picture], stuff=mini.NAMES[2:]), Options()
    )
    item = benchmark.items[0]
    truth = coco_panoptic.read_truth(item, "source")
    assert sorted(np.unique(truth)) == [0, 71000, 72000, 73000, 320000] and item.crowds == {320000}
    found = {k: kind for k, kind in item.segments.items() if k not in item.crowds}
    classes = np.select([truth == k for k in item.segments], list(item.segments.values()), 1)
    record = coco_panoptic.record(item, truth, truth, found | {320000: 0}, classes, 3)
    assert benchmark.scores([item], [record]) == dict.fromkeys(coco_panoptic.MEASURES, 1.0)
    drawn = np.where(truth == 71000, 0, truth)
    record = coco_panoptic.record(item, truth, drawn, {72000: 1, 73000: 1}, classes, 3)
    assert record["segments"] == {"0": [0, 0, 0, 1], "1": [1, 1, 1, 0], "2": [0, 0, 0, 1]}
    assert benchmark.scores([item], [record])["PQ stuff"] == 0


def test_davis_is_asked_as_the_paper_does(tmp_path: Path) -> None:
    """In the third frame one object is hidden: the first frame is asked for the rest; then memory has too few."""
    frames = film(0)
    hidden = frames[2].labels.copy()
    hidden[hidden == 2] = 0
    frames[2] = replace(frames[2], labels=hidden)
    oracle = Oracle()
    benchmark = open_benchmark("davis", mini.write_davis(tmp_path, {"bear": frames}), Options())
    record = benchmark.ask["psalm"](oracle, benchmark.items[0])
    assert [len(one) for one in record["j"]] == [3, 3, 3]  # neither the first frame nor the last is judged
    asked = [(len(q.regions.masks), int(np.argmin([np.abs(q.first.picture.image.astype(int) - f.image).mean()
              for f in frames]))) for q in oracle.asked]  # fmt: skip
    assert asked == [(3, 0), (2, 0), (3, 0), (3, 3)]  # objects, and the frame they were looked up in
    shown = np.array(Image.open(tmp_path / "Annotations" / "480p" / "bear" / "00000.png"))
    assert set(np.unique(shown)) == {0, 1, 2, 3}


def test_polygons_and_both_kinds_of_rle_are_one_mask() -> None:
    from pixelrt import rle

    mask = PICTURES[0].mask(1)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel().astype(int), [2]])))).tolist()
    plain = {"size": list(mask.shape), "counts": runs}
    for segmentation in (mini.polygons(mask), rle.encode(mask), [rle.encode(mask)], plain):
        np.testing.assert_array_equal(annotations.read_mask(segmentation, mask.shape, "x"), mask)
    assert not annotations.read_mask([], mask.shape, "x").any()


# ---- the pickle -------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return print, ("arbitrary code",)


def test_a_pickle_that_calls_functions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "refs(unc).p"
    for value in (Evil(), [{"sentences": Evil()}], np.zeros(2), io.BytesIO):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file.write_bytes(pickle.dumps(value, protocol))
            with pytest.raises(InputError, match="plain values only"):
                refer_file.read_refs(file)
    assert "arbitrary" not in capsys.readouterr().out


def test_both_pythons_pickles_are_read(tmp_path: Path) -> None:
    file, value = (
        tmp_path / "r.p",
        [{"sent": "a man's hat", "ref_id": 3, "sentences": ["café", "b\n"], "x": []}],
    )
    for data in (mini.python2_pickle(value), *(pickle.dumps(value, p) for p in range(6))):
        file.write_bytes(data)
        assert refer_file.read_refs(file) == value
    for damaged in (b"", b"I1", data[:-4], b"\x80\x7f", b"no pickle at all"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"r\.p is not a file of references"):
            refer_file.read_refs(file)


# ---- what is malformed ------------------------------------------------------------------------------------


def edited(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        document = json.loads((root / file).read_text())
        change(document)
        (root / file).write_text(json.dumps(document))

    return apply


def smaller(file: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with Image.open(root / file) as picture:
            half = picture.resize((picture.width // 2, picture.height))
        half.save(root / file)

    return apply


def refs(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "refcoco" / "refs(unc).p"
        value = refer_file.read_refs(file)
        change(value)
        file.write_bytes(mini.python2_pickle(value))

    return apply


JPEG = "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"
PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
MALFORMED = {
    "instances gone": ("refcoco", lambda r: (r / "refcoco/instances.json").unlink(), "instances.json is missing"),
    "refs gone": ("refcoco", lambda r: (r / "refcoco/refs(unc).p").unlink(), r"has none of refs\(unc\)"),
    "no JSON": ("refcoco", lambda r: (r / "refcoco/instances.json").write_text("{"), "is not JSON"),
    "no list": ("refcoco", edited("refcoco/instances.json", lambda d: d.update(images=3)), "is 3, wanted a list"),
    "no width": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][0].pop("width")), "lacks width"),
    "no such object": ("refcoco", refs(lambda v: v[0].update(ann_id=77)), "object 77, which"),
    "no such picture": ("refcoco", refs(lambda v: v[0].update(image_id=77)), "names picture 77"),
    "no sentence": ("refcoco", refs(lambda v: v[0].update(sentences=[])), "has no sentence"),
    "same reference": ("refcoco", refs(lambda v: v[0].update(ref_id=2)), "two references named 2"),
    "other refs": ("refcoco", refs(lambda v: v[0].pop("split")), "lacks split"),
    "one id twice": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][1].update(id=1)), "has two"),
    "id of text": ("refcoco", edited("refcoco/instances.json", lambda d: d["images"][1].update(id="x")), "number"),
    "picture resized": ("refcoco", smaller(JPEG), r"has 48 x 32 pixels .* says 48 x 64"),
    "picture gone": ("refcoco", lambda r: (r / JPEG).unlink(), "is not there"),
    "no picture": ("refcoco", lambda r: (r / JPEG).write_bytes(b"x"), "not a picture"),
    "bad polygon": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][0].update(segmentation=[[1, 2]])),
        "three points",
    ),
    "mask of words": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][0].update(segmentation=["x"])),
        "no mask that can be read",
    ),
    "RLE of another size": (
        "refcoco",
        edited("refcoco/instances.json", lambda d: d["annotations"][1]["segmentation"][0].update(size=[3, 4])),
        "its RLE is 3 x 4, the picture 48 x 64",
    ),
    "fewer answers": ("muse", edited("muse_val.json", lambda d: d[0]["answers"].pop()), "2 questions and 1 answers"),
    "no place": ("muse", edited("muse_val.json", lambda d: d[0].pop("file_name")), "neither file_name nor coco_url"),
    "no entries": ("muse", edited("muse_val.json", lambda d: d.clear()), "has no questions"),
    "not MUSE": ("muse", lambda r: mini.write_json(r / "muse_val.json", {"images": []}), "wanted a list"),
    "unknown category": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"][0].update(category_id=7)),
        "names category 7",
    ),
    "segment not listed": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"].pop()),
        "shows segment 73000, which .* does not list",
    ),
    "segment not shown": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["annotations"][0]["segments_info"][0].update(id=5)),
        "does not show segment 5",
    ),
    "map resized": ("coco-panoptic", smaller("annotations/panoptic_val2017/000000000001.png"), "48 x 32 pixels"),
    "map gone": (
        "coco-panoptic",
        lambda r: (r / "annotations/panoptic_val2017/000000000001.png").unlink(),
        "is not there",
    ),
    "same class twice": (
        "coco-panoptic",
        edited(PANOPTIC, lambda d: d["categories"][0].update(name="blue star")),
        "given more than once",
    ),
    "unknown class": ("coco-instance", edited(INSTANCES, lambda d: d["annotations"][0].update(category_id=7)), "y 7"),
    "area of text": ("coco-instance", edited(INSTANCES, lambda d: d["annotations"][0].update(area="x")), "area 'x'"),
    "bad mask": (
        "coco-instance",
        edited(INSTANCES, lambda d: d["annotations"][0].update(segmentation={"size": [48, 64], "counts": [1]})),
        "do not add up",
    ),
    "no list of videos": ("davis", lambda r: (r / "ImageSets/2017/val.txt").unlink(), "list of DAVIS"),
    "unknown video": ("davis", lambda r: (r / "ImageSets/2017/val.txt").write_text("cat"), "names the video cat"),
    "frame gone": ("davis", lambda r: (r / "JPEGImages/480p/bear/00002.jpg").unlink(), "00002 of bear is in only"),
    "frame resized": ("davis", smaller("JPEGImages/480p/bear/00001.jpg"), "48 x 32 pixels"),
    "new object": (
        "davis",
        lambda r: Image.fromarray(np.full((48, 64), 9, np.uint8)).save(r / "Annotations/480p/bear/00001.png"),
        r"shows the objects \[9\], the first frame \[1, 2, 3\]",
    ),
    "no PNG": ("davis", lambda r: (r / "Annotations/480p/bear/00001.png").write_bytes(b"x"), "not a PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    dataset, damage, sentence = MALFORMED[case]
    folder = WRITERS[dataset](tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as refused:
        benchmark = open_benchmark(dataset, folder, Options())
        for item in benchmark.items:
            for file in benchmark.files(item):
                if not file.is_file():
                    raise InputError(f"{file} is not there.")
            if dataset == "coco-panoptic":
                coco_panoptic.read_truth(item, "the annotations")
            else:
                benchmark.ask[next(iter(benchmark.ask))](Oracle(), item)
    words = str(refused.value)
    assert re.search(sentence, words) and words.endswith(".") and "\n" not in words


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    folder = WRITERS["refcoco"](tmp_path)
    for options, sentence in (
        (Options(split="testC"), "no split 'testC'. Choose one of: val"),
        (Options(question="What?"), "has no {sent}"),
        (Options(blind=True), "--blind was given, but refcoco does not take it"),
        (Options(images=tmp_path / "nowhere"), "is not a folder"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            open_benchmark("refcoco", folder, options)
    with pytest.raises(InputError, match="is not a folder"):
        open_benchmark("davis", tmp_path / "nowhere", Options())
    assert set(WRITERS) == set(DATASETS)
    assert davis.UNJUDGED == 255 and check_bundles([], open_benchmark("refcoco", folder, Options())) == []


def test_a_variant_is_known_by_its_folder(tmp_path: Path) -> None:
    folder = mini.write_refcoco(tmp_path, PICTURES, "refcoco+", "testB")
    assert open_benchmark("refcoco", folder, Options(split="testB")).variant == "refcoco+"
