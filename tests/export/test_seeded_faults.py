"""Deliberate mistakes in a bundle: `verify` finds each and names its place. It knows none of them by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pixelrt.bundle import write_manifest
from pixelrt_export.export import export_bundle
from pixelrt_export.quantize.plan import Settings
from pixelrt_export.quantize.records import Record, read_records
from pixelrt_export.verify.bundle import open_original, verify_bundle
from pixelrt_export.verify.original import Original

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "pixellm-tiny"
SEG = 640  # of pixellm-tiny: the first codebook id of six


class Faulty:
    """A copy of a bundle to spoil; `sealed` makes its manifest agree with its files again."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(source, folder))
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    def sealed(self) -> Path:
        names = list(self.manifest.pop("files"))
        write_manifest(self.folder, self.manifest, names)
        return self.folder

    def graph(self, name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
        file = self.folder / f"{name}.fp32.onnx"
        model = onnx.load(file, load_external_data=False)
        edit(model)
        file.write_bytes(model.SerializeToString())

    def weight(self, graph: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a stored tensor (int4: its bytes) where it lies, for every graph that has it."""
        model = onnx.load(self.folder / f"{graph}.fp32.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        place = {entry.key: entry.value for entry in tensor.external_data}
        kinds = {onnx.TensorProto.INT4: np.uint8, onnx.TensorProto.INT8: np.int8}
        kind = kinds.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = (-1,) if tensor.data_type == onnx.TensorProto.INT4 else tuple(tensor.dims)
        count, offset = int(place["length"]) // np.dtype(kind).itemsize, int(place["offset"])
        data = np.memmap(self.folder / "weights.data", kind, "r+", offset, (count,))
        data[:] = change(np.array(data).reshape(shape)).reshape(-1)
        data.flush()


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def insert(model: onnx.ModelProto, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(before)
    for new in reversed(nodes):
        model.graph.node.insert(at, new)


def unpacked(data: np.ndarray) -> np.ndarray:
    nibbles = np.stack([data & 15, data >> 4], 1).reshape(-1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def packed(values: np.ndarray) -> np.ndarray:
    nibbles = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)


# ---- the faults: (bundle, what is done, stage, part of the place) -------------------------------------------


def block_transposed(b: Faulty) -> None:
    """A square weight stored (N, K) in place of (K, N)."""
    b.weight(
        "language",
        "language.layers.1.q_proj.weight.int4",
        lambda d: packed(unpacked(d).reshape(128, 128).T),
    )


def wrong_zero_point(b: Faulty) -> None:
    """Read as 0..15 around 8 where it was written around 7."""
    b.weight(
        "language",
        "language.layers.2.up_proj.weight.int4",
        lambda d: packed(np.clip(unpacked(d) + 1, -8, 7)),
    )


def one_blocks_scale_doubled(b: Faulty) -> None:
    """32 of 352 inputs of one layer: less than rounding does to its output."""

    def double(s: np.ndarray) -> np.ndarray:
        s[5] *= 2
        return s

    b.weight("language", "language.layers.0.down_proj.scale", double)


def overflow_in_a_norm(b: Faulty) -> None:
    """The squares of a norm summed in fp16, of inputs as large as a 7B model's: 65504 is its largest number."""

    def edit(model: onnx.ModelProto) -> None:
        norm = node(model, "layers.2/RMSNormalization")
        large = numpy_helper.from_array(np.float16(3000), "large")
        model.graph.initializer.append(large)
        x, weight = norm.input
        insert(
            model,
            norm,
            helper.make_node("Cast", [x], ["n1"], to=onnx.TensorProto.FLOAT16),
            helper.make_node("Mul", ["n1", "large"], ["n2"]),
            helper.make_node("Mul", ["n2", "n2"], ["n3"]),
            helper.make_node("ReduceMean", ["n3"], ["n4"], noop_with_empty_axes=0, keepdims=1),
            helper.make_node("Sqrt", ["n4"], ["n5"]),
            helper.make_node("Div", ["n2", "n5"], ["n6"]),
            helper.make_node("Cast", ["n6"], ["n7"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["n7", weight], [norm.output[0]]),
        )
        model.graph.node.remove(norm)

    b.graph("language", edit)


def head_scale_doubled(b: Faulty) -> None:
    def double(w: np.ndarray) -> np.ndarray:
        w[:, 64:96] *= 2  # head 2 of four
        return w

    b.weight("language", "language.layers.3.q_proj.weight", double)


def stale_cache_row(b: Faulty) -> None:
    """New rows are written one place too early once the cache has any: the last one that was read is lost."""

    def edit(model: onnx.ModelProto) -> None:
        scatter = next(n for n in model.graph.node if n.op_type == "TensorScatter")
        for name, value in (("one", 1), ("zero", 0)):
            model.graph.initializer.append(numpy_helper.from_array(np.int64(value), f"stale.{name}"))
        insert(
            model,
            scatter,
            helper.make_node("Sub", ["write_indices", "stale.one"], ["stale.a"]),
            helper.make_node("Max", ["stale.a", "stale.zero"], ["stale.b"]),
        )
        for n in model.graph.node:
            if n.op_type == "TensorScatter":
                n.input[2] = "stale.b"

    b.graph("language", edit)


def rotary_swapped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for n in model.graph.node:
            if n.op_type == "RotaryEmbedding":
                n.input[1], n.input[2] = n.input[2], n.input[1]

    b.graph("language", edit)


def twin_sees_the_future(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        where = next(n for n in model.graph.node if n.op_type == "Where")
        where.input[2] = where.input[1]

    b.graph("language_compat", edit)


def head_row_off_by_one(b: Faulty) -> None:
    """Each codebook token gets the logit of the next one."""

    def roll(w: np.ndarray) -> np.ndarray:
        w[:, SEG : SEG + 6] = np.roll(w[:, SEG : SEG + 6], 1, axis=1)
        return w

    b.weight("language", "language.lm_head.weight", roll)


def seg_rows_off_by_one(b: Faulty) -> None:
    entry = b.manifest["embeddings"]
    rows = np.memmap(b.folder / "embeddings.bin", entry["dtype"], "r+", shape=tuple(entry["shape"]))
    rows[SEG : SEG + 6] = np.roll(np.array(rows[SEG : SEG + 6]), 1, axis=0)
    rows.flush()


def other_template(b: Faulty) -> None:
    b.manifest["prompt"]["template"] = b.manifest["prompt"]["template"].replace("USER:", "Human:")


def other_mean(b: Faulty) -> None:
    """CLIP's own constants, which PixelLM does not use."""
    b.manifest["image"]["mean"] = [122.77, 116.75, 104.09]


def padding_mask_dropped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        first = next(n for n in model.graph.node if "patch_valid" in n.input)
        insert(
            model,
            first,
            helper.make_node("Not", ["patch_valid"], ["dropped.a"]),
            helper.make_node("Or", ["patch_valid", "dropped.a"], ["dropped.b"]),
        )
        first.input[0] = "dropped.b"

    b.graph("encoder", edit)


def class_row_first(b: Faulty) -> None:
    """CLIP's own order of the position table, which PixelLM does not use: here rows moved on by one."""
    b.weight("encoder", "clip.patch_positions", lambda p: np.roll(p, -1, axis=1))


def activation_step_halved(b: Faulty) -> None:
    """One layer's input is cut off at half of its range."""

    def edit(model: onnx.ModelProto) -> None:
        for n in model.graph.node:
            if n.op_type in ("QuantizeLinear", "DequantizeLinear") and n.name.startswith("clip/layers.3/fc2"):
                value = next((t for t in model.graph.initializer if t.name == n.input[1]), None)
                if value is not None and not value.dims:
                    smaller = numpy_helper.from_array(numpy_helper.to_array(value) / 4, f"{value.name}/4")
                    if all(t.name != smaller.name for t in model.graph.initializer):
                        model.graph.initializer.append(smaller)
                    n.input[1] = smaller.name

    b.graph("encoder", edit)


def levels_swapped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        names = {"level_embed.0": "level_embed.1", "level_embed.1": "level_embed.0"}
        for n in model.graph.node:
            for i, value in enumerate(n.input):
                n.input[i] = names.get(value, value)

    b.graph("pixel_decoder", edit)


def third_for_sixth(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        sixth = next(
            t
            for t in model.graph.initializer
            if not t.dims
            and t.data_type == onnx.TensorProto.FLOAT
            and abs(numpy_helper.to_array(t) - 1 / 6) < 1e-6
        )
        sixth.CopyFrom(numpy_helper.from_array(np.float32(1 / 3), sixth.name))

    b.graph("pixel_decoder", edit)


def corners_aligned_in_resize(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        resize = next(n for n in model.graph.node if n.op_type == "Resize")
        for attribute in resize.attribute:
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"align_corners"

    b.graph("pixel_decoder", edit)


def projector_convolution_once(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        second = node(model, "mm_projector/Conv_3")
        for n in model.graph.node:
            for i, value in enumerate(n.input):
                if value == second.output[0]:
                    n.input[i] = second.input[0]
        model.graph.node.remove(second)

    b.graph("encoder", edit)


def corners_aligned_in_sampling(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for function in model.functions:
            for n in function.node:
                for attribute in n.attribute if n.op_type == "GridSample" else ():
                    if attribute.name == "align_corners":
                        attribute.i = 1 - attribute.i

    b.graph("encoder", edit)


def window_mask_dropped(b: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        masked = next(n for n in model.graph.node if any("shift_mask" in value for value in n.input))
        masked.input[1] = masked.input[0]

    b.graph("encoder", edit)


def projectors_in_another_order(b: Faulty) -> None:
    b.weight("language", "condition_projector.weight", lambda w: np.roll(w, 1, axis=0))


FAULTS: list[tuple[str, Callable[[Faulty], None], str, str]] = [
    ("int4", block_transposed, "language", "language.layers.1.q_proj"),
    ("int4", wrong_zero_point, "language", "language.layers.2.up_proj"),
    ("int4", one_blocks_scale_doubled, "language", "language.layers.0.down_proj"),
    ("fp32", overflow_in_a_norm, "language", "language.layers.2"),
    ("fp32", head_scale_doubled, "language", "language.layers.3.q_proj"),
    ("fp32", stale_cache_row, "language", "through the cache"),
    ("fp32", rotary_swapped, "language", "language.layers.0"),
    ("fp32", twin_sees_the_future, "language", "of the compatibility twin"),
    ("int4", head_row_off_by_one, "language", "language.lm_head"),
    ("int4", seg_rows_off_by_one, "tokens", "embeddings"),
    ("int8", other_template, "tokens", "embeddings"),
    ("int8", other_mean, "picture", "pixels"),
    ("fp32", padding_mask_dropped, "encoder", "clip.layers.0"),
    ("int4", class_row_first, "encoder", "clip.patch_positions"),
    ("int8", activation_step_halved, "encoder", "clip.layers.3"),
    ("fp32", levels_swapped, "pixel_decoder", "low_res_masks"),
    ("int4", third_for_sixth, "pixel_decoder", "low_res_masks"),
    ("fp32", corners_aligned_in_resize, "pixel_decoder", "low_res_masks"),
    ("psalm", projector_convolution_once, "encoder", "image_tokens"),
    ("psalm", corners_aligned_in_sampling, "encoder", "mask_features"),
    ("psalm", window_mask_dropped, "encoder", "swin.layers.0.blocks.1"),
    ("psalm", projectors_in_another_order, "language", "condition_projector"),
]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """One picture with padding and two targets."""
    return read_records(None)[:1]


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
    bundles: dict[str, Path], originals: dict[str, Original], records: list[Record], kind: str
) -> None:
    report = verify_bundle(bundles[kind], originals[kind], records)
    assert report.passed, report.sentence()
    # Room between what is sound and what is not, so that another machine's rounding does not decide.
    for stage, row in report.stages().items():
        assert row["error"] <= row["limit"] * 2 / 3, (stage, row)


@pytest.mark.parametrize(("kind", "fault", "stage", "place"), FAULTS, ids=[f[1].__name__ for f in FAULTS])
def test_faults(
    bundles: dict[str, Path],
    originals: dict[str, Original],
    records: list[Record],
    tmp_path: Path,
    kind: str,
    fault: Callable[[Faulty], None],
    stage: str,
    place: str,
) -> None:
    faulty = Faulty(bundles[kind], tmp_path / "b")
    fault(faulty)
    report = verify_bundle(faulty.sealed(), originals[kind], records)
    assert not report.passed
    first = report.faults[0]
    print(f"{kind:6} {fault.__name__:28} {first.stage}: {first.where}  {first.error:.3g} / {first.limit:g}")
    assert first.stage == stage and place in first.where, report.sentence()
