"""`pixelrt bench`: stages from outside, for both families; the files and the page it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from measured import made_up
from PIL import Image
from pixelrt.bench.comparison import compare
from pixelrt.bench.files import Files
from pixelrt.bench.measurement import Settings, load_subject, measure
from pixelrt.bench.page import page
from pixelrt.bench.record import read_record
from pixelrt.bench.samples import STAGES, Question, stages_of, take_sample
from pixelrt.bench.stopwatch import Call, TimedEngine, seconds_per_call
from pixelrt.bench.table import report
from pixelrt.cli import main
from pixelrt.cli.bench import file_names, questions_of
from pixelrt.cli.query_options import QueryOptions
from pixelrt.errors import InputError
from pixelrt.queries import Classes, Refer, Regions

TOKENS = 12  # the golden model often does not end its answer itself
ONCE = Settings(warm_up_ms=0, duration_s=0, iterations=2, max_new_tokens=2)
NOTHING = QueryOptions(None, None, None, 0.0, False, 0.0, (), (), (), ())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def calls(*starts: float) -> list[Call]:
    return [Call("language", start, start + 0.001) for start in starts]


def test_the_language_stage_is_cut_at_the_second_forward() -> None:
    timing = {"image": 2.0, "encode": 10.0, "language": 50.0, "upsample": 3.0, "accepted": 0.7}
    spent = stages_of(timing, calls(1.000, 1.030, 1.035), tokens=6, total=70.0)
    assert spent["prefill"] == pytest.approx(30) and spent["decode"] == pytest.approx(20)
    assert spent["decode_token"] == pytest.approx(4) and spent["other"] == pytest.approx(5)
    assert "accepted" not in spent  # not a time


def test_a_prompt_that_is_read_in_pieces() -> None:
    pieces = [Call("language", start, start, full=start < 1.02) for start in (1.0, 1.01, 1.02, 1.03, 1.04)]
    assert stages_of({"language": 50.0}, pieces, tokens=3, total=60.0)["prefill"] == pytest.approx(30)
    assert "decode" not in stages_of({"language": 50.0}, pieces[:3], tokens=1, total=60.0)


def test_an_answer_in_one_forward_has_no_decoding() -> None:
    spent = stages_of({"language": 50.0}, calls(1.0), tokens=12, total=60.0)
    assert spent["prefill"] == 50 and "decode" not in spent and "decode_token" not in spent


def test_a_family_without_words_reads_its_prompt_in_pieces() -> None:
    spent = stages_of({"language": 50.0, "masks": 4.0}, calls(1.0, 1.03), tokens=0, total=60.0)
    assert spent == {"upsample": 4.0, "prefill": 50.0, "other": 6.0, "total": 60.0}


def test_a_timed_engine_is_the_engine() -> None:
    taken: list[Call] = []
    memory = SimpleNamespace(most=lambda name, axis: 4)

    class Inner:
        file = "a file"

        def __init__(self) -> None:
            self.memory = memory

        def __call__(self, inputs: Any, into: Any = None) -> Any:
            return {"inputs": inputs, "into": into}

    timed: Any = TimedEngine("language", Inner(), taken)  # type: ignore[arg-type]
    assert (timed.file, timed.memory) == ("a file", memory)
    for rows in (4, 3):
        given = {"inputs_embeds": np.zeros((1, rows, 8))}
        assert timed(given, "buffers") == {"inputs": given, "into": "buffers"}
    assert [(call.graph, call.full) for call in taken] == [("language", True), ("language", False)]
    assert taken[0].start <= taken[0].stop <= taken[1].start
    assert seconds_per_call() >= 0


@pytest.mark.parametrize("family", ["pixellm", "psalm"])
def test_a_sample_is_the_answer_taken_apart(
    family: str, picture: Path, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue({"pixellm": "golden_bundle_b", "psalm": "golden_psalm_bundle"}[family])
    subject = load_subject(bundle)
    query = "Find it." if family == "pixellm" else Classes(["sky", "a tree"], "instance")
    question = Question(picture, query, "words")
    sample, again = (take_sample(subject.segmenter, subject.backend, question, TOKENS) for _ in range(2))
    plain = pixelrt.load(bundle)
    answer = plain.segment(plain.encode(picture), query, max_new_tokens=TOKENS)
    assert sample.masks == len(answer.masks) > 0 and sample.answer_sha256 == again.answer_sha256
    assert sum(sample.spent.get(stage, 0) for stage in STAGES) == pytest.approx(sample.spent["total"])
    assert all(ms >= 0 for ms in sample.spent.values()) and sample.spent["first_mask"] > 0
    assert sample.tokens == len(getattr(answer, "token_ids", ()))
    assert ("decode" in sample.spent) == (family == "pixellm") and sample.forwards >= 1


def test_questions_are_the_same_where_they_ask_the_same(picture: Path) -> None:
    def named(query: Any) -> str:
        return Question(picture, query, "").sha256

    mask = np.eye(4)
    assert named(Classes(["a", "b"], things=["b", "a"])) == named(Classes(["a", "b"]))
    different = [
        "x", "y", Refer("x"), Refer("x", several=True), Classes(["a", "b"]), Classes(["b", "a"]),
        Classes(["a", "b"], "semantic"), Regions(points=[(1, 2)]), Regions(masks=[mask]), Regions(masks=[1 - mask]),
    ]  # fmt: skip
    assert len({named(query) for query in different}) == len(different)


def test_two_bundles_in_turn(golden_bundle_b: Path, picture: Path) -> None:
    subjects = [load_subject(golden_bundle_b), load_subject(golden_bundle_b)]
    questions = [Question(picture, text, text) for text in ("Find it.", "Find them.")]
    told: list[tuple[int, int]] = []
    first, second = measure(subjects, questions, ONCE, told=lambda done, of: told.append((done, of)))
    assert [number for number, _ in told] == [0, 1]
    for record in (first, second):
        assert record.rounds.tolist() == [0, 0, 1, 1] and record.questions.tolist() == [0, 1, 0, 1]
        assert record.about["interleaved"] == 2 and record.about["forwards_per_answer"] > 1
        assert record.about["memory"] == {"host_peak_bytes": None, "device_bytes": None}
    for subject in subjects:  # a question that is asked again is as one that was never asked
        assert not subject.segmenter.drafts.learning  # type: ignore[attr-defined]
        assert {row["forwards"] for row in first.about["questions"]} == {
            sample.forwards for _, _, sample in subject.samples
        }
    order = sorted(
        (sample.start, which) for which, subject in enumerate(subjects) for _, _, sample in subject.samples
    )
    assert [which for _, which in order] == [0, 1, 1, 0, 1, 0, 0, 1]  # each begins as often
    assert first.about["run"] == second.about["run"] and first.about["questions"] == second.about["questions"]


def test_sensors_reach_the_record(golden_bundle_b: Path, picture: Path, tmp_path: Path) -> None:
    """The tree of a Jetson Orin Nano, written by hand, draws 7.27 W all the time."""
    tree = json.loads((Path(__file__).parent / "sensors" / "orin_nano.json").read_text())["files"]
    for path, text in tree.items():
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (record,) = measure(
        [load_subject(golden_bundle_b)], [Question(picture, "Find it.", "")], ONCE, Files(tmp_path)
    )
    energy = record.about["energy"]
    seconds = record.columns["total"].mean() / 1e3
    assert energy["watts"] == pytest.approx(7.269, abs=1e-3) and energy["source"] == "power monitor: VDD_IN"
    assert energy["joules_per_answer"] == pytest.approx(7.269 * seconds, rel=0.01)
    assert record.about["throttling"] == {"seen": False, "signs": []}
    assert record.about["before"]["power_mode"] == "MAXN"
    assert record.about["machine"]["cpu"] == "NVIDIA Jetson Orin Nano Developer Kit"


# ---- what is written ----------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


def test_the_program(golden_bundle_b: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--image", picture, "--prompt", "Find it.", "--out", out, "--max-new-tokens", 2]
    result = run("bench", golden_bundle_b, *asked, "--warmUp", 0, "--duration", 0, "--iterations", 1)
    assert result.exit_code == 0, result.output
    name = json.loads((golden_bundle_b / "manifest.json").read_text())["name"]
    assert {f.name for f in out.iterdir()} == {f"{name}.json", "bench.html", "bench.md"}
    for words in ("| total", "pixel decoder", "copies", "not measured", "pixelrt compare"):
        assert words in result.output
    record = read_record(out / f"{name}.json")
    assert record.about["settings"] == {"warmUp_ms": 0, "duration_s": 0, "iterations": 1, "max-new-tokens": 2}
    assert record.about["memory"]["host_peak_bytes"] > 10 << 20


@pytest.mark.parametrize("rounds", [10, 9])
def test_several_bundles_are_compared(
    golden_bundle_b: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    made = [made_up(1, rounds=rounds), made_up(2, rounds=rounds, slower={"decode": 1.25})]
    monkeypatch.setattr("pixelrt.bench.measurement.measure", lambda *given, **named: made)
    asked = ["--image", picture, "--prompt", "Find it.", "--out", tmp_path / "out"]
    result = run("bench", golden_bundle_b, golden_bundle_b, *asked)
    assert result.exit_code == 0, result.output
    assert ("Measured in turn" in result.output) == (rounds == 10)
    assert ("No comparison: it takes 10 rounds" in result.output) == (rounds == 9)
    found = [read_record(tmp_path / "out" / f"pixellm-tiny-{i}.json") for i in (1, 2)]
    assert rounds == 9 or compare(*found).paired


def test_questions_that_are_refused(golden_bundle_b: Path, golden_psalm_bundle: Path, picture: Path) -> None:
    alone = run("bench", golden_bundle_b, "--image", picture)
    assert alone.exit_code == 2 and "--prompt" in alone.stderr
    absent = run("bench", golden_bundle_b, "--image", "nowhere.png", "--prompt", "x")
    assert absent.exit_code == 2 and "nowhere.png" in absent.stderr
    mixed = run("bench", golden_bundle_b, golden_psalm_bundle)
    assert mixed.exit_code == 2 and "pixellm and psalm" in mixed.stderr
    assert run("bench").exit_code == 2 and run("bench", picture.parent).exit_code == 2
    backend = run("bench", golden_bundle_b, "--backend", "x", "--image", picture, "--prompt", "x")
    assert backend.exit_code == 2 and "'x'" in backend.stderr


def test_the_samples_are_asked_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = questions_of((), None, NOTHING, "pixellm")
    assert len(asked) == 12 and asked[0].query == "Segment the red circle and the blue star."
    classes = questions_of((), None, NOTHING, "psalm")[0].query
    assert isinstance(classes, Classes) and classes.task == "panoptic" and "blue star" in classes.names
    assert {q.query for q in questions_of((), "the mug", NOTHING, "psalm")} == {"the mug"}
    monkeypatch.setattr("pixelrt.cli.bench.SAMPLES", tmp_path)
    with pytest.raises(InputError, match="--image"):
        questions_of((), None, NOTHING, "pixellm")


def test_names_of_files() -> None:
    assert file_names(["a", "b/../c", "a"]) == ["a-1.json", "b-..-c.json", "a-2.json"]
    assert file_names([".", "ü x"]) == ["bundle.json", "ü-x.json"]


def test_the_page_needs_nothing_else_and_trusts_no_name() -> None:
    first, second = made_up(1), made_up(2, slower={"decode": 1.25})
    text = page([first, second], [compare(first, second)])
    assert not re.search(r"https?:|src=|<link|<script|@import|url\(", text)
    assert (
        "Segment the red circle &lt;script&gt;." in text and text.count("<svg") == text.count("</svg>") == 4
    )
    assert "prefers-color-scheme:dark" in text
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))


def test_pages_of_one_answer_and_of_many_bundles() -> None:
    one = made_up(1, rounds=1, questions=1)
    assert "answers a second" in page([one], []) and "| total" in report([one], [])
    many = [made_up(seed, rounds=10, questions=1) for seed in range(6)]
    assert "pixellm-tiny (6)" in page(many, [])
