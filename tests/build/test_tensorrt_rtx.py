"""TensorRT-RTX itself, without a GPU: every graph of both families is taken and becomes an engine.

benchmarks/rtx_engines.py does the shipped checkpoints and those of full width, for four architectures.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from pixelrt.build.builder import Wish, build_engines, site_of
from pixelrt.bundle import Bundle
from pixelrt.engines import check

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="TensorRT-RTX is not installed (make tensorrt-check installs it; a download of 95 MB)",
    ),
]
TARGET = "sm_86"


@pytest.fixture(scope="module", params=["pixellm", "psalm"])
def rounded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Golden weights with an int8 encoder and an int4 language model, its head stored as a large one's is."""
    import numpy as np
    from PIL import Image
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize import plan

    checkpoint = {"pixellm": "golden_checkpoint_a", "psalm": "golden_psalm_checkpoint"}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "pictures").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "pictures" / "0.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHORTLIST_FROM", 0)
        return export_bundle(
            request.getfixturevalue(checkpoint),
            folder / "bundle",
            precision="int4",
            stages={"encoder": "int8"},
            settings=plan.Settings(calib=folder / "pictures", calibrated=False),
        )


def test_int8_and_int4_graphs_become_engines(rounded: Path) -> None:
    bundle, wish = Bundle.read(rounded), Wish(TARGET, "tensorrt-rtx", level=0)
    site = site_of(bundle, wish)
    engines = build_engines(bundle, site, wish, say=print)
    precisions = {graph: record.precision for graph, record in engines.records.items()}
    assert precisions == {"encoder": "int8", "language": "int4", "pixel_decoder": "fp16"}
    here = site.here.__class__("tensorrt-rtx", site.library.version, site.library.cuda, TARGET)
    for graph, record in engines.records.items():
        assert record.layers > 50 and check(engines, graph, here, bundle).stat().st_size == record.bytes


def test_the_twin_and_fp32_become_engines(golden_bundle_a: Path, tmp_path: Path) -> None:
    """fp32 activations take the twin, as TensorRT before 10.15 does."""
    folder = Path(shutil.copytree(golden_bundle_a, tmp_path / "bundle"))
    bundle, wish = Bundle.read(folder), Wish(TARGET, "tensorrt-rtx", ("language",), "float32", level=0)
    record = build_engines(bundle, site_of(bundle, wish), wish, say=print).records["language"]
    assert (record.source, record.activations) == ("language_compat", "float32")


def test_an_operator_that_it_lacks_is_named(golden_bundle_a: Path, tmp_path: Path) -> None:
    import hashlib
    import json

    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    folder = Path(shutil.copytree(golden_bundle_a, tmp_path / "bundle"))
    file = folder / "encoder.fp16.onnx"
    model = onnx.load(file, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type, node.name = "Unique", "the/odd/one"
    del node.attribute[:]
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][file.name] = {"bytes": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle, wish = Bundle.read(folder), Wish(TARGET, "tensorrt-rtx", ("encoder",))
    with pytest.raises(ValueError, match=r"refuses encoder in fp32: Unique \(the/odd/one\)"):
        build_engines(bundle, site_of(bundle, wish), wish)
