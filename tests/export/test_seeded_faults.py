"""Deliberate mistakes in a bundle: `verify` finds each and names its place. It knows none of them by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faults_of_language as language
import faults_of_vision as vision
import pytest
from faulty import Faulty
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import Record, read_records
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.original import Original

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"

# (bundle, what is done, stage, part of the place)
FAULTS: list[tuple[str, Callable[[Faulty], None], str, str]] = [
    ("int4", language.block_transposed, "language", "language.layers.1.q_proj"),
    ("int4", language.wrong_zero_point, "language", "language.layers.2.up_proj"),
    ("int4", language.one_blocks_scale_doubled, "language", "language.layers.0.down_proj"),
    ("fp32", language.overflow_in_a_norm, "language", "language.layers.2"),
    ("fp32", language.head_scale_doubled, "language", "language.layers.3.q_proj"),
    ("fp32", language.stale_cache_row, "language", "through the cache"),
    ("fp32", language.rotary_swapped, "language", "language.layers.0"),
    ("fp32", language.twin_sees_the_future, "language", "of the compatibility twin"),
    ("int4", language.head_row_off_by_one, "language", "language.lm_head"),
    ("int4", language.seg_rows_off_by_one, "tokens", "embeddings"),
    ("int8", language.other_template, "tokens", "embeddings"),
    ("int8", vision.other_mean, "picture", "pixels"),
    ("fp32", vision.padding_mask_dropped, "encoder", "clip.layers.0"),
    ("int4", vision.class_row_first, "encoder", "clip.patch_positions"),
    ("int8", vision.activation_step_halved, "encoder", "clip.layers.3"),
    ("fp32", vision.levels_swapped, "pixel_decoder", "low_res_masks"),
    ("int4", vision.third_for_sixth, "pixel_decoder", "low_res_masks"),
    ("fp32", vision.corners_aligned_in_resize, "pixel_decoder", "low_res_masks"),
    ("psalm", vision.projector_convolution_once, "encoder", "image_tokens"),
    ("psalm", vision.corners_aligned_in_sampling, "encoder", "mask_features"),
    ("psalm", vision.window_mask_dropped, "encoder", "swin.layers.0.blocks.1"),
    ("psalm", language.projectors_in_another_order, "language", "condition_projector"),
    ("psalm", language.class_names_without_their_mark, "tokens", "embeddings"),
]


@pytest.fixture(scope="module")
def records() -> dict[str, list[Record]]:
    """One picture with padding and two targets; of a PSALM a sentence, some classes, some points."""
    worded, typed = read_records(None)[3:4], read_records(None, typed=True)
    return {**dict.fromkeys(("fp32", "int8", "int4"), worded), "psalm": [typed[i] for i in (0, 1, 3)]}


@pytest.fixture(scope="module")
def originals(golden_psalm_checkpoint: Path) -> dict[str, Original]:
    pytest.importorskip("torch", reason="needs the export extra")
    tiny = open_original(TINY)
    return {"fp32": tiny, "int8": tiny, "int4": tiny, "psalm": open_original(golden_psalm_checkpoint)}


@pytest.fixture(scope="module")
def bundles(golden_psalm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    found = {
        precision: export_bundle(TINY, folder / precision, precision=precision, settings=Settings())
        for precision in ("fp32", "int8", "int4")
    }
    return {**found, "psalm": golden_psalm_bundle}


@pytest.mark.parametrize("kind", ["fp32", "int8", "int4", "psalm"])
def test_sound_bundles_pass(
    bundles: dict[str, Path], originals: dict[str, Original], records: dict[str, list[Record]], kind: str
) -> None:
    report = verify_bundle(bundles[kind], originals[kind], records[kind])
    assert report.passed, report.sentence()
    # Room between what is sound and what is not, so that another machine's rounding does not decide.
    for stage, row in report.stages().items():
        assert row["error"] <= row["limit"] * 2 / 3, (stage, row)


@pytest.mark.parametrize(("kind", "fault", "stage", "place"), FAULTS, ids=[f[1].__name__ for f in FAULTS])
def test_faults(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    records: dict[str, list[Record]],
    tmp_path: Path,
    kind: str,
    fault: Callable[[Faulty], None],
    stage: str,
    place: str,
) -> None:
    faulty = Faulty(bundles[kind], tmp_path / "b")
    fault(faulty)
    report = verify_bundle(faulty.sealed(), originals[kind], records[kind])
    assert not report.passed
    first = report.faults[0]
    print(f"{kind:6} {fault.__name__:28} {first.stage}: {first.where}  {first.error:.3g} / {first.limit:g}")
    assert first.stage == stage and place in first.where, report.sentence()
