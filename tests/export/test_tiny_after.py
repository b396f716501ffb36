"""A training run that goes on from a finished one."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentencepiece", reason="needs the train extra")

from pixelrt_export.tiny import train  # noqa: E402
from pixelrt_export.tiny.losses import joint_loss  # noqa: E402
from pixelrt_export.tiny.questions import MIX, MIX_AFTER  # noqa: E402
from pixelrt_export.tiny.tokenizer import train_model  # noqa: E402
from pixelrt_export.tiny.train import Run, Settings  # noqa: E402


def settings(folder: Path, out: str, after: str = "") -> Settings:
    (folder / out).mkdir()
    (folder / out / "tokenizer.model").write_bytes(train_model(scenes=60, pieces=560))
    return Settings(
        str(folder / out),
        str(folder / "scenes"),
        scenes=8,
        images=2,
        questions=1,
        most_masks=2,
        processes=1,
        minutes=1.0,
        after=after,
    )


def test_it_starts_from_what_the_first_run_ended_with(tmp_path: Path) -> None:
    first = Run(settings(tmp_path, "first"), 0)
    first.advance(0.5)
    first.save()
    second = Run(settings(tmp_path, "second", str(tmp_path / "first" / "state.pt")), 0)
    assert second.step == 1 and second.spent_s == 0
    for kind in ("net", "crutches"):
        ours, theirs = (getattr(run.trained, kind).state_dict() for run in (second, first))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for ours, theirs in zip(second.optimisers, first.optimisers, strict=True):
        assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()


def test_it_has_no_first_stage_and_no_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its very beginning answers are trained already, and the pixel decoder sees the model's own prompts."""
    first = Run(settings(tmp_path, "first"), 0)
    assert set(first.advance(0.0)) == {"loss", "dense", "grad_norm"}
    first.save()
    second = Run(settings(tmp_path, "second", str(tmp_path / "first" / "state.pt")), 0)
    told: dict[str, float] = {}
    monkeypatch.setattr(
        train, "joint_loss", lambda *_, **given: told.update(given) or joint_loss(*_, **given)
    )
    assert "wrong_tokens" in second.advance(0.0)
    assert told["oracle"] == 0 and told["aid"] == train.LAST_AID
    assert first.packer.mix == MIX and second.packer.mix == MIX_AFTER


def test_it_resumes_from_itself(tmp_path: Path) -> None:
    first = Run(settings(tmp_path, "first"), 0)
    first.save()
    mine = settings(tmp_path, "second", str(tmp_path / "first" / "state.pt"))
    second = Run(mine, 0)
    second.step, second.spent_s = 7, 20.0
    second.save()
    again = Run(mine, 0)
    assert again.step == 7 and again.spent_s >= 20.0


def test_the_mix_is_of_the_same_kinds() -> None:
    assert set(MIX_AFTER) == set(MIX)
    assert sum(MIX_AFTER.values()) == pytest.approx(1)
