"""The torch reference against the outputs of the original code (tests/golden/pixellm)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("safetensors", reason="needs the export extra")

from pixelrt_export.reference.clip import resized_positions  # noqa: E402
from pixelrt_export.reference.generate import Reference  # noqa: E402
from pixelrt_export.reference.mask_decoder import GaussianPositions  # noqa: E402
from pixelrt_export.reference.pixellm import PixelLM  # noqa: E402
from pixelrt_export.reference.preprocess import fit, preprocess  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

# Worst absolute difference seen from the original in float32, times about 5: sums run in another order here
# (fused attention).
TOLERANCE = {
    "step_logits": 2e-6,
    "last_hidden": 1e-5,
    "seg_hidden": 1e-5,
    "F2_hidden_minus2": 2e-5,
    "F1_hidden_minus11": 2e-5,
    "image_tokens_256": 2e-5,
    "A0_out_proj_F2": 2e-5,
    "A1_out_proj_F1": 2e-5,
    "fused_tokens": 4e-5,
    "level0_masks": 3e-4,
    "level1_masks": 4e-4,
    "low_res_masks": 2e-4,
    "pred_masks": 2e-4,
}


def read_model(folder: Path) -> PixelLM:
    parts = [folder / "pixellm", folder / "clip"]
    return PixelLM.from_tensors(
        *(json.loads((part / "config.json").read_text()) for part in parts),
        *(load_file(part / "model.safetensors") for part in parts),
    )


@pytest.mark.parametrize(
    ("name", "procedure"),
    [
        ("two_targets", "cached"),
        pytest.param("two_targets", "original", marks=pytest.mark.slow),  # 17 passes of everything
        ("one_target_eos", "cached"),
        ("one_target_eos", "original"),
        ("zero", "cached"),
        ("zero", "original"),
    ],
)
def test_every_stage_is_the_original_s(
    name: str, procedure: str, golden_pixellm: Path, request: pytest.FixtureRequest
) -> None:
    meta = json.loads((golden_pixellm / "golden.json").read_text())
    case, golden = meta["cases"][name], load_file(golden_pixellm / f"case_{name}.safetensors")
    checkpoint = request.getfixturevalue(f"golden_checkpoint_{case['lm_head'].lower()}")
    reference = Reference(read_model(checkpoint.parent), meta["seg_token_idx"])
    image = np.load(golden_pixellm / "preprocess.npz")[f"{case['image']}.rgb_uint8"]
    ids = golden["input_ids"][0].tolist()
    out = reference.generate(image, ids, case["max_new_tokens"], procedure)

    assert ids + out.token_ids == golden["output_ids"][0].tolist()
    features = out.features
    stages = {
        "step_logits": out.step_logits,
        "last_hidden": out.hidden[None],
        "seg_hidden": out.seg_hidden,
        "F2_hidden_minus2": features.deep,
        "F1_hidden_minus11": features.shallow,
        "image_tokens_256": features.tokens,
        "A0_out_proj_F2": features.projected[0],
        "A1_out_proj_F1": features.projected[1],
        "fused_tokens": out.fused,
        "level0_masks": out.level_masks[0],
        "level1_masks": out.level_masks[1],
        "low_res_masks": out.low_res,
        "pred_masks": out.masks,
    }
    for stage in stages.keys() & golden.keys():
        np.testing.assert_allclose(stages[stage], golden[stage], rtol=0, atol=TOLERANCE[stage], err_msg=stage)
    assert not ((out.masks.numpy() > 0) != (golden["pred_masks"] > 0)).any()


def test_preprocess_is_the_original_s(golden_pixellm: Path) -> None:
    golden = np.load(golden_pixellm / "preprocess.npz")
    for name in ("land", "port", "square"):
        image = golden[f"{name}.rgb_uint8"]
        np.testing.assert_array_equal(fit(image, 448), golden[f"{name}.resized_uint8"])
        pixels = preprocess(image, 448)[0][:, ::16, ::16]
        np.testing.assert_allclose(
            pixels, golden[f"{name}.image_clip_hw::16"].reshape(pixels.shape), atol=1e-6
        )


def test_constants_are_the_original_s(golden_pixellm: Path, golden_checkpoint_a: Path) -> None:
    golden = load_file(golden_pixellm / "constants.safetensors")
    net = read_model(golden_checkpoint_a.parent)
    table = resized_positions(net.clip.vision_model.embeddings.position_embedding.weight, 32)
    np.testing.assert_allclose(table, golden["clip_pos_resized_1025"], atol=1e-6)
    levels = (net.model.prompt_encoder.pe_layer, 32, 4), (net.model.mask_decoder.pe1, 64, 8)
    for level, (positions, side, stride) in enumerate(levels):
        ours = positions(side, side)[..., ::stride, ::stride].numpy()
        theirs = golden[f"dense_pe_level{level}_hw::{stride}"]
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=2e-5)


def test_state_dict_is_the_original_s(golden_pixellm: Path, golden_checkpoint_a: Path) -> None:
    language, clip = read_model(golden_checkpoint_a.parent).split_state()
    lines = (line.split("\t") for line in (golden_pixellm / "state_dict_keys.txt").read_text().splitlines())
    stored = {key: json.loads(shape) for key, shape, _ in lines if "rotary_emb" not in key}
    tower = "model.vision_tower.vision_tower."
    assert {k: list(v.shape) for k, v in language.items()} == {
        k: shape for k, shape in stored.items() if not k.startswith("model.vision_tower")
    }
    assert set(clip) == {k.removeprefix(tower) for k in stored if tower in k and "position_ids" not in k}


def test_a_position_table_of_the_right_size_is_left_alone() -> None:
    table = torch.randn(26, 8)
    assert resized_positions(table, 5) is table


def test_gaussian_positions_put_x_first() -> None:
    positions = GaussianPositions(4)
    image = positions(3, 5)
    assert image.shape == (1, 8, 3, 5)
    centre = 2 * torch.tensor([4.5 / 5, 0.5 / 3]) - 1  # column 4, row 0
    angle = 2 * torch.pi * (centre @ positions.positional_encoding_gaussian_matrix)
    torch.testing.assert_close(image[0, :, 0, 4], torch.cat([angle.sin(), angle.cos()]), atol=1e-5, rtol=0)
