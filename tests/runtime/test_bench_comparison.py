"""What is said of measured times: percentiles, intervals, and `pixelrt compare`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from measured import document, made_up
from pixelrt.bench import statistics
from pixelrt.bench.comparison import compare, differences_of
from pixelrt.bench.record import Record, read_record
from pixelrt.bench.statistics import ratio_of, summarise
from pixelrt.cli import main
from pixelrt.errors import InputError


def test_a_summary() -> None:
    found = summarise(range(1, 101))
    assert (found.n, found.mean) == (100, 50.5) and found.std == pytest.approx(math.sqrt(100 * 101 / 12))
    assert found.percentiles == {
        50: 50.5,
        90: pytest.approx(90.1),
        95: pytest.approx(95.05),
        99: pytest.approx(99.01),
    }


@pytest.mark.parametrize(("count", "given"), [(1, [50]), (9, [50]), (10, [50, 90]), (20, [50, 90, 95])])
def test_percentiles_need_samples(count: int, given: list[int]) -> None:
    found = summarise(np.ones(count)).percentiles
    assert [p for p, value in found.items() if value is not None] == given
    assert (summarise(np.ones(count)).std is None) == (count == 1)


def slow_ratio(first: np.ndarray, second: np.ndarray, paired: bool, intervals: int) -> list[float]:
    """The same numbers, one resample at a time."""

    def ratio(a: np.ndarray, b: np.ndarray) -> float:
        logs = [math.log(np.median(b[:, q]) / np.median(a[:, q])) for q in range(a.shape[1])]
        return sum(logs) / len(logs)

    rng, drawn = np.random.default_rng(0), []
    for _ in range(statistics.DRAWS):
        rows = rng.integers(len(first), size=(1, len(first)))[0]
        others = rows if paired else rng.integers(len(second), size=(1, len(second)))[0]
        drawn.append(ratio(first[rows], second[others]))
    centre, widen = ratio(first, second), math.sqrt(len(first) / (len(first) - 1))
    tail = 0.05 / 2 / intervals
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return [math.exp(x) for x in (centre, centre + widen * (low - centre), centre + widen * (high - centre))]


@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_is_what_a_loop_gives(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 300)
    monkeypatch.setattr(statistics, "AT_ONCE", 1)  # one draw at a time, so that both draw the same rows
    rng = np.random.default_rng(7)
    first, second = rng.gamma(9, size=(11, 3)), rng.gamma(9, size=(11, 3))
    fast = ratio_of(first, second, paired=paired, intervals=4)
    assert [fast.value, fast.low, fast.high] == pytest.approx(slow_ratio(first, second, paired, 4))


def test_drift_of_the_machine_cancels_where_two_were_measured_in_turn() -> None:
    shared = np.linspace(1, 2, 40)[:, None]  # twice as slow at the end
    noise = np.exp(0.01 * np.random.default_rng(1).standard_normal((2, 40, 3)))
    first, second = shared * noise[0], shared * 1.06 * noise[1]
    assert ratio_of(first, second, paired=True).low > 1.04
    assert ratio_of(first, second, paired=False).low < 1


def test_too_few_rounds_have_no_interval() -> None:
    with pytest.raises(ValueError, match="rounds"):
        ratio_of(np.ones((9, 2)), np.ones((20, 2)), paired=False)


def test_the_same_thing_twice_is_no_change() -> None:
    """All intervals of a comparison hold together with 95 %: of 6 pairs at most one may be off (p = 0.97)."""
    off = 0
    for seed in range(6):
        found = compare(made_up(seed, rounds=10), made_up(1000 + seed, rounds=10))
        assert not found.failed(0.05)
        off += any(change.words in ("slower", "faster") for change in found.stages)
    assert off <= 1


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode", "pixel_decoder", "upsample"])
def test_a_stage_slower_by_a_quarter_is_named(stage: str) -> None:
    found = compare(made_up(1), made_up(2, slower={stage: 1.25}))
    failed = {change.stage for change in found.failed(0.05)}
    assert stage in failed and failed <= {stage, "total"}
    (change,) = (change for change in found.stages if change.stage == stage)
    assert change.ratio is not None and change.ratio.low < 1.25 < change.ratio.high
    assert change.second_ms == pytest.approx(change.ratio.value * change.first_ms)


def test_what_is_too_small_to_judge() -> None:
    found = compare(made_up(1), made_up(2, slower={"other": 1.5}))
    (other,) = (change for change in found.stages if change.stage == "other")
    assert other.ratio is None and other.words == "under 1 % of the answer" and not other.fails(0.05)


def test_a_stage_of_one_alone() -> None:
    first = made_up(1)
    second = replace(made_up(2), columns={k: v for k, v in made_up(2).columns.items() if k != "decode"})
    (decode,) = (change for change in compare(first, second).stages if change.stage == "decode")
    assert decode.words == "in one of the two only"


def test_a_question_without_masks_counts_only_where_it_has_the_stage() -> None:
    def without(record: Record) -> Record:
        drawn = np.where(record.questions == 2, np.nan, record.columns["pixel_decoder"])
        return replace(record, columns={**record.columns, "pixel_decoder": drawn})

    found = compare(without(made_up(1)), without(made_up(2, slower={"pixel_decoder": 1.25})))
    (drawn,) = (change for change in found.stages if change.stage == "pixel_decoder")
    assert drawn.ratio is not None and 1.2 < drawn.ratio.value < 1.3


OTHER_BUNDLE = document()["bundle"] | {"sha256": "cd" * 32}
OTHER_MACHINE = document()["machine"] | {"cpu": "Another Processor"}
OTHER_QUESTIONS = [q | {"sha256": "f" * 64} for q in document()["questions"]]


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("bundles", {"bundle": OTHER_BUNDLE}),
        ("hardware", {"machine": OTHER_MACHINE}),
        ("hardware", {"before": document()["before"] | {"power_mode": "MODE_15W"}}),
        ("inputs", {"asked": OTHER_QUESTIONS}),
    ],
)
def test_different_things_are_refused_unless_meant(kind: str, about: dict[str, Any]) -> None:
    first, second = made_up(1), made_up(2, **about)
    with pytest.raises(InputError, match=f"cannot be compared: .*--across {kind}$"):
        compare(first, second)
    assert [k for k, _ in compare(first, second, (kind,)).differences] == [kind]


def test_measurements_of_other_lengths_across_inputs() -> None:
    first, second = made_up(1, questions=4), made_up(2, questions=2, rounds=31)
    assert compare(first, second, ("inputs",)).stages[-1].ratio is not None


def test_what_else_differs_is_said() -> None:
    other = {
        "versions": {"pixelrt": "0.1.0", "onnxruntime": "1.25.0", "tensorrt": "10.3.0"},
        "throttling": {"seen": True, "signs": ["cpu-throttle-alert"]},
        "asked": [q | {"answer_sha256": "0" * 64} for q in document()["questions"]],
    }
    assert differences_of(made_up(1), made_up(1)) == []
    assert differences_of(made_up(1), made_up(1, **other)) == [
        ("note", "onnxruntime: 1.31.1 and 1.25.0"),
        ("note", "tensorrt: not known and 10.3.0"),
        ("note", "4 of 4 questions were answered otherwise"),
        ("note", "the machine was throttled during the second: cpu-throttle-alert"),
    ]


# ---- the program --------------------------------------------------------------------------------------------


def written(path: Path, record: Record) -> Path:
    path.write_text(json.dumps(record.document()))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pixelrt")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": written(tmp_path / "a.json", made_up(1, run="one")),
        "same": written(tmp_path / "same.json", made_up(2, run="two")),
        "slow": written(tmp_path / "slow.json", made_up(3, run="three", slower={"decode": 1.25})),
        "other": written(tmp_path / "other.json", made_up(4, bundle=OTHER_BUNDLE)),
        "short": written(tmp_path / "short.json", made_up(5, rounds=9)),
    }


def test_a_record_comes_back_as_it_was(files: dict[str, Path]) -> None:
    made, read = made_up(1, run="one"), read_record(files["a"])
    assert read.about == {"format": 1, **made.about} and np.array_equal(read.questions, made.questions)
    for name, values in made.columns.items():
        np.testing.assert_allclose(read.columns[name], values, atol=5e-5)  # four digits are written


def test_no_change(files: dict[str, Path]) -> None:
    result = run("compare", files["a"], files["same"])
    assert result.exit_code == 0 and result.output.endswith("\nno change\n")
    assert "what differs from run to run" in " ".join(result.output.split())


def test_a_slower_stage_fails_and_is_named(files: dict[str, Path]) -> None:
    result = run("compare", files["a"], files["slow"], "--fail-over", "5%")
    assert result.exit_code == 1, result.output
    assert "slower by more than 5 %: decode" in result.output
    document = json.loads(run("compare", files["a"], files["slow"], "--json").output)
    assert [s["stage"] for s in document["stages"] if s["fails"]][:1] == ["decode"]
    allowed = run("compare", files["a"], files["slow"], "--fail-over", "0.4")
    assert allowed.exit_code == 0 and "within 40 %: decode slower" in allowed.output


def test_other_bundles_are_exit_code_2(files: dict[str, Path]) -> None:
    result = run("compare", files["a"], files["other"])
    assert result.exit_code == 2 and "--across bundles" in result.stderr
    assert run("compare", files["a"], files["other"], "--across", "bundles").exit_code == 0


def test_too_short(files: dict[str, Path]) -> None:
    result = run("compare", files["a"], files["short"])
    assert result.exit_code == 2 and "9 rounds" in result.stderr and "--iterations" in result.stderr


@pytest.mark.parametrize("share", ["five", "-1%", "nan", "5%%", ""])
def test_a_limit_that_is_none(files: dict[str, Path], share: str) -> None:
    result = run("compare", files["a"], files["same"], "--fail-over", share)
    assert result.exit_code == 2 and "--fail-over" in result.stderr


def damaged(path: Path, change: Any) -> Path:
    document = made_up(1).document()
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("samples_ms"),
        lambda d: d.pop("machine"),
        lambda d: d["bundle"].pop("sha256"),
        lambda d: d.update(format=2),
        lambda d: d.update(format="1"),
        lambda d: d.update(questions={}),
        lambda d: d["samples_ms"]["total"].pop(),
        lambda d: d["samples_ms"]["round"].__setitem__(0, -1),
        lambda d: d["samples_ms"]["round"].__setitem__(0, 1 << 40),
        lambda d: d["samples_ms"]["question"].__setitem__(0, 4),
        lambda d: d["samples_ms"]["encode"].__setitem__(0, -1.0),
        lambda d: d["samples_ms"]["encode"].__setitem__(0, float("inf")),
        lambda d: d["samples_ms"]["total"].__setitem__(0, None),
        lambda d: d["samples_ms"].update(total="many"),
        lambda d: d["samples_ms"].pop("total"),
        lambda d: d.update(before=None),
    ],
)
def test_damaged_files_are_refused(files: dict[str, Path], tmp_path: Path, change: Any) -> None:
    bad = damaged(tmp_path / "bad.json", change)
    result = run("compare", files["a"], bad)
    assert result.exit_code == 2 and str(bad) in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000])
def test_other_files_are_refused(files: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    assert run("compare", tmp_path / "bad.json", files["a"]).exit_code == 2
    assert run("compare", tmp_path / "absent.json", files["a"]).exit_code == 2
    assert run("compare", tmp_path, files["a"]).exit_code == 2
