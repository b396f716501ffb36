"""A killed export goes on where it was, and ends with the bytes of one that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixelrt.errors import InputError
from pixelrt_export import gate, work
from pixelrt_export.export import export_bundle
from pixelrt_export.gate import Refused
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.weight_file import WeightFile
from pixelrt_export.work import Work, work_on

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """In place of SIGKILL, which the script of the last test sends."""


@contextmanager
def killed(lines: int, torn: bool) -> Iterator[None]:
    """The process ends when this many lines of the journal are written; of the next one, half or nothing."""
    original, left = Work.note, [lines]

    def note(self: Work, key: str, value: object) -> None:
        if left[0] == 0:
            if torn:
                with (self.folder / work.JOURNAL).open("ab") as journal:
                    journal.write(json.dumps({"key": key}).encode()[:-1])
            raise Killed
        left[0] -= 1
        original(self, key, value)

    Work.note = note  # type: ignore[method-assign]
    try:
        yield
    finally:
        Work.note = original  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    golden_checkpoint_a: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Precision -> bundle, each made once."""
    made: dict[str, Path] = {}

    def bundle(precision: str) -> Path:
        if precision not in made:
            target = tmp_path_factory.mktemp(precision) / "b"
            made[precision] = export(golden_checkpoint_a, target, precision, pictures)
        return made[precision]

    return bundle


def export(checkpoint: Path, target: Path, precision: str, calib: Path, **options: object) -> Path:
    return export_bundle(checkpoint, target, precision=precision, settings=Settings(calib=calib), **options)  # type: ignore[arg-type]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_same(a: Path, b: Path) -> None:
    assert left_in(a) == left_in(b)
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name


@pytest.mark.parametrize(("precision", "torn"), [("fp16", True), ("int8", False), ("int4", True)])
def test_killed_again_and_again(
    golden_checkpoint_a: Path,
    pictures: Path,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    torn: bool,
) -> None:
    """After the first lines, then after every 57th, and at last never. Each tensor is made once, but for the one that
    the kill interrupted."""
    monkeypatch.setattr(work, "SPARE", 10.0)  # so small a bundle would else keep nothing of its calibration
    made: list[str] = []
    put = WeightFile.put

    def counting(self: WeightFile, name: str, dtype: str, make: Callable[[], np.ndarray]) -> object:
        return put(self, name, dtype, lambda: made.append(name) or make())  # type: ignore[func-returns-value]

    monkeypatch.setattr(WeightFile, "put", counting)
    kills, target = 0, tmp_path / "b"
    for lines in (0, 1, 2, *[57] * 100):
        try:
            with killed(lines, torn):
                export(golden_checkpoint_a, target, precision, pictures)
            break
        except Killed:
            kills += 1
            assert not target.exists() and left_in(tmp_path) == {".b.partial"}
    assert kills > 4
    assert len(made) <= len(set(made)) + kills
    assert_same(target, undisturbed(precision))
    assert left_in(tmp_path) == {"b"}


def partly(checkpoint: Path, target: Path, calib: Path, precision: str, lines: int = 150) -> Path:
    """The work folder of an export that was killed."""
    with pytest.raises(Killed), killed(lines, False):
        export(checkpoint, target, precision, calib)
    return target.with_name(f".{target.name}.partial")


def test_what_is_damaged_is_made_again(
    golden_checkpoint_a: Path, pictures: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """A byte of a tensor, half of them, the table cut short, a file that is gone: as a crashed disk leaves them."""

    def flip(bundle: Path) -> None:
        data = bytearray((bundle / "weights.data").read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / "weights.data").write_bytes(data)

    def cut(bundle: Path) -> None:
        os.truncate(bundle / "weights.data", (bundle / "weights.data").stat().st_size // 2)

    def shorten(bundle: Path) -> None:
        os.truncate(bundle / "embeddings.bin", 100)

    def lose(bundle: Path) -> None:
        (bundle / "weights.data").unlink()

    for number, damage in enumerate((flip, cut, shorten, lose)):
        target = tmp_path / str(number) / "b"
        damage(partly(golden_checkpoint_a, target, pictures, "fp16") / work.BUNDLE)
        export(golden_checkpoint_a, target, "fp16", pictures)
        assert_same(target, undisturbed("fp16"))


def test_another_export_begins_anew_and_says_so(
    golden_checkpoint_a: Path, pictures: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(golden_checkpoint_a.parent, tmp_path / "copy")) / golden_checkpoint_a.name
    target, said = tmp_path / "b", list[str]()

    def go(precision: str, lines: int = 150, **options: object) -> None:
        with pytest.raises(Killed), killed(lines, False):
            export(copy, target, precision, pictures, note=said.append, **options)

    go("fp16")
    go("fp16", 3)
    assert said == ["goes on where an export was stopped"]
    go("int4")
    assert (
        "the precision" in said[-1] and said[-1].startswith("begins anew:") and said[-1].endswith("changed")
    )
    weights = copy / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    go("int4")
    assert said[-1] == "begins anew: the checkpoint changed"
    os.utime(copy.parent / "clip" / "config.json", ns=(1, 1))
    go("int4")
    assert said[-1] == "begins anew: the checkpoint changed"
    (pictures / "more.png").write_bytes((pictures / "0.png").read_bytes())
    try:
        go("int4")
    finally:
        (pictures / "more.png").unlink()
    assert said[-1] == "begins anew: the calibration pictures changed"
    go("int4")
    go("int4", restart=True)
    assert said[-1] == "begins anew: a new start was asked for"
    (tmp_path / ".b.partial" / work.JOURNAL).write_bytes(b"\0" * 4096)  # what a crash may leave
    export(copy, target, "int4", pictures)
    assert_same(target, undisturbed("int4"))


def test_one_export_at_a_time(golden_checkpoint_a: Path, pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    with work_on(target), pytest.raises(InputError, match="is being written by another export"):
        export(golden_checkpoint_a, target, "fp16", pictures)
    assert left_in(tmp_path) == set()
    with work_on(target):
        pass  # the lock is free again


def test_a_refused_export_leaves_nothing(golden_checkpoint_a: Path, pictures: Path, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        export(golden_checkpoint_a, tmp_path / "b", "fp16", pictures, gate=refuse)
    assert left_in(tmp_path) == set()


def test_a_killed_check_does_not_cost_the_export(
    golden_checkpoint_a: Path,
    pictures: Path,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(folder: Path) -> None:
        (folder / "report.json").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        export(golden_checkpoint_a, tmp_path / "b", "int4", pictures, gate=die)
    monkeypatch.setattr(
        "pixelrt_export.weight_file.narrowed", None
    )  # any tensor that is made needs one of these
    monkeypatch.setattr("pixelrt_export.weight_file.packed", None)
    assert_same(export(golden_checkpoint_a, tmp_path / "b", "int4", pictures), undisturbed("int4"))


def test_a_killed_search_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the gate: no bundle is checked twice, whenever it is killed."""
    from tests.export.test_gate import LAYERS, Verifier, exported

    monkeypatch.setattr(gate, "open_original", lambda checkpoint, vision_tower: None)
    whole = Verifier({LAYERS[0], LAYERS[3]})
    monkeypatch.setattr(gate, "verify_bundle", whole)
    with pytest.raises(Refused) as wanted:
        exported(tmp_path / "b")
    shutil.rmtree(tmp_path / "b.rejected")
    checks: list[set[str]] = []
    for _ in range(20):
        verifier = Verifier({LAYERS[0], LAYERS[3]})

        def verify(*given: object, verifier: Verifier = verifier) -> object:
            if verifier.asked:
                raise Killed  # at the second check of each run
            return verifier(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(gate, "verify_bundle", verify)
        try:
            exported(tmp_path / "b")
        except Killed:
            pass
        except Refused as refused:
            assert str(refused) == str(wanted.value)
            break
        finally:
            checks += verifier.asked
    assert checks == whole.asked
    assert left_in(tmp_path) == {"b.rejected"}


def test_real_kills(golden_checkpoint_a: Path, pictures: Path, tmp_path: Path) -> None:
    """SIGKILL, at lines of the journal; `scripts/killed_exports.py` without --lines kills at random moments."""
    script = [
        sys.executable,
        str(ROOT / "scripts" / "killed_exports.py"),
        str(golden_checkpoint_a),
        str(tmp_path),
    ]
    options = ["--calib", str(pictures), "--precision", "int4", "--kills", "4", "--lines"]
    path = os.pathsep.join(str(ROOT / name) for name in ("runtime", "export", "kernels"))
    done = subprocess.run(
        [*script, *options],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "4 kills" in done.stdout and "same bytes" in done.stdout, done.stderr
