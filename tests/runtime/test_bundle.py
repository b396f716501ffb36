"""The manifest is the contract: what is read, and every way a bundle is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt.bundle import FORMAT, Bundle, GraphFile
from pixelrt.engine import HostMemory
from pixelrt.errors import InputError
from pixelrt.onnx_file import external_locations
from pixelrt.segmenter import open_bundle
from pixelrt.tokens import TokenTable


@pytest.fixture
def bundle(golden_bundle_a: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(golden_bundle_a, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict], None]) -> None:
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_manifest_names_every_file(golden_bundle_a: Path) -> None:
    read = Bundle.read(golden_bundle_a)
    assert read.manifest["format"] == FORMAT
    on_disk = {file.name for file in golden_bundle_a.iterdir()} - {"manifest.json"}
    assert set(read.manifest["files"]) == on_disk
    for name, entry in read.manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((golden_bundle_a / name).read_bytes()).hexdigest()


def test_graphs_are_described_as_they_are(golden_bundle_a: Path) -> None:
    onnx = pytest.importorskip("onnx")
    read = Bundle.read(golden_bundle_a)
    for name, entry in read.manifest["graphs"].items():
        for file in entry["files"]:
            graph = onnx.load(golden_bundle_a / file["file"], load_external_data=False).graph
            for side, values in (("inputs", graph.input), ("outputs", graph.output)):
                for told, value in zip(entry[side], values, strict=True):
                    kind = value.type.tensor_type
                    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
                    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
                    wanted = file["activations"] if told["dtype"] == "activations" else told["dtype"]
                    assert (told["name"], wanted, told["shape"]) == (value.name, dtype, shape), name


def test_expected_hash(golden_bundle_a: Path) -> None:
    right = hashlib.sha256((golden_bundle_a / "manifest.json").read_bytes()).hexdigest()
    assert Bundle.read(golden_bundle_a, expect_sha256=right.upper()).sha256 == right
    with pytest.raises(InputError, match="was expected"):
        pixelrt.load(golden_bundle_a, expect_sha256="0" * 64)


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def flip_a_bit(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)

    return spoil


def truncate(name: str) -> Callable[[Path], None]:
    return lambda bundle: os.truncate(bundle / name, 100)


def manifest_with(key: str, value: object) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: manifest.__setitem__(key, value))


def name_outside(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        (bundle.parent / "secret").write_text("x")
        edit(
            bundle,
            lambda m: m["files"].__setitem__(name, {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}),
        )

    return spoil


def link_outside(bundle: Path) -> None:
    shutil.move(bundle / "embeddings.bin", bundle.parent / "elsewhere.bin")
    (bundle / "embeddings.bin").symlink_to(bundle.parent / "elsewhere.bin")


def embeddings_with(key: str, value: object) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: manifest["embeddings"].__setitem__(key, value))


def tokens_with(key: str, value: object) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: manifest["tokens"].__setitem__(key, value))


def unlisted_graph(bundle: Path) -> None:
    edit(bundle, lambda m: m["files"].pop("encoder.fp32.onnx"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (remove("weights.data"), "lacks weights.data"),
        (remove("tokenizer.json"), "lacks tokenizer.json"),
        (remove("manifest.json"), "no manifest.json"),
        (flip_a_bit("weights.data"), "was altered"),
        (flip_a_bit("language.fp32.onnx"), "was altered"),
        (truncate("embeddings.bin"), "has 100 bytes"),
        (truncate("manifest.json"), "not JSON"),
        (manifest_with("format", FORMAT + 1), "Upgrade pixelrt"),
        (manifest_with("format", "1"), "no integer `format`"),
        (manifest_with("format", True), "no integer `format`"),
        (manifest_with("family", "sam"), "of family 'sam'"),
        (lambda bundle: edit(bundle, lambda m: m.pop("graphs")), "lacks graphs"),
        (name_outside("../secret"), "outside the bundle"),
        (name_outside("/etc/hostname"), "outside the bundle"),
        (name_outside("a\\..\\b"), "outside the bundle"),
        (link_outside, "outside the bundle"),
        (unlisted_graph, "lists no hash"),
        (embeddings_with("dtype", "object"), "wanted one of bfloat16, float16, float32"),
        (embeddings_with("dtype", "float32"), "are 208896"),
        (embeddings_with("shape", [408, 127]), "are 103632"),
        (tokens_with("seg", [400, 401, 402, 403, 404, 404]), "do not fit one another"),
        (tokens_with("seg", [1, 2, 3, 4, 5, 5000]), "do not fit one another"),
        (tokens_with("seg_scales", 4), "do not fit one another"),
        (tokens_with("seg", "x"), "wanted a list"),
        (manifest_with("prompt", {"template": "no place for the question <image>"}), "once"),
        (manifest_with("prompt", {"template": 5}), "wanted a string"),
        (lambda bundle: (bundle / "manifest.json").write_text("[" * 100_000), "not JSON"),
    ],
)
def test_refused(bundle: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(bundle)
    with pytest.raises(InputError, match=sentence) as caught:
        pixelrt.load(bundle)
    assert "\n" not in str(caught.value)


def places(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value; of lists only the first item."""
    if at:
        yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*at, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


class NoEngines:
    """A backend that opens nothing, so that a thousand manifests can be tried."""

    name = "none"

    def open(self, graph: str) -> Any:
        return SimpleNamespace(file=GraphFile(Path("none"), "float32", 21, None, (), ()), memory=HostMemory())


def test_no_wrong_value_of_a_manifest_surprises(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place of the manifest with each wrong value: a sentence, or it does not matter; never another error."""
    monkeypatch.setattr("pixelrt.bundle.external_locations", lambda content: set())  # has tests of its own
    file = bundle / "manifest.json"
    right = json.loads(file.read_text())
    wrong = [
        None,
        "x",
        "",
        -1,
        0,
        1.5,
        True,
        [],
        {},
        ["x"],
        {"a": 1},
        1 << 40,
        float("nan"),
        float("inf"),
        [[]],
    ]
    refused = tried = 0
    for at in list(places(right)):
        for value in wrong:
            manifest = json.loads(json.dumps(right))
            inner = manifest
            for step in at[:-1]:
                inner = inner[step]
            inner[at[-1]] = value
            file.write_text(json.dumps(manifest))
            tried += 1
            try:
                open_bundle(Bundle.read(bundle, verify=False), NoEngines())
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert tried > 1000 and refused > tried / 2


def test_tags_that_readers_understand_differently(bundle: Path) -> None:
    """A tag of more than 32 bits is another field to ONNX Runtime than to us: refused."""
    graph = (bundle / "encoder.fp32.onnx").read_bytes()
    field_1_of_33_bits = bytes([0x8A, 0x80, 0x80, 0x80, 0x10])  # 1 << 32 | 1 << 3 | 2
    for tag in (field_1_of_33_bits, bytes([0x02]), bytes([0x8A, 0x80, 0x80, 0x80, 0x80, 0x00])):
        with pytest.raises(ValueError, match="proper number"):
            external_locations(graph + tag + b"\x00")
    assert external_locations(graph) == {"weights.data"}


def test_arguments_of_load(bundle: Path) -> None:
    for arguments in ((None,), (3,), (bundle, "auto", 123)):
        with pytest.raises(InputError):
            pixelrt.load(*arguments)


def test_not_a_bundle(tmp_path: Path, golden_checkpoint_a: Path) -> None:
    for path, sentence in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "not a bundle"),
        (golden_checkpoint_a, "pixelrt export"),
    ):
        with pytest.raises(InputError, match=sentence):
            pixelrt.load(path)
    with pytest.raises(InputError, match="No backend"):
        pixelrt.load(tmp_path, backend="abacus")


def test_graph_files_cannot_read_outside_the_bundle(bundle: Path) -> None:
    """A thin graph whose weights are said to lie elsewhere, with hashes to match, is still refused."""
    onnx = pytest.importorskip("onnx")
    shutil.copy(bundle / "weights.data", bundle.parent / "weights.data")
    file = bundle / "encoder.fp32.onnx"
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for pair in tensor.external_data:
            if pair.key == "location":
                pair.value = "../weights.data"
    file.write_bytes(model.SerializeToString())
    entry = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    edit(bundle, lambda m: m["files"].__setitem__(file.name, entry))
    with pytest.raises(InputError, match=r"uses '\.\./weights\.data'"):
        pixelrt.load(bundle)


def test_external_tensors_are_found_wherever_they_hide() -> None:
    """In an attribute, in a branch of an If, in a function: the loader of an old runtime would follow them."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def tensor(location: str):
        value = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        value.external_data.add(key="offset", value="0")
        value.external_data.add(key="location", value=location)
        return value

    constant = helper.make_node("Constant", [], ["c"], value=tensor("attribute"))
    branch = helper.make_graph([], "branch", [], [], [tensor("branch")])
    choice = helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([constant, choice], "g", [], [], [tensor("initializer")]))
    inner = helper.make_node("Constant", [], ["e"], value=tensor("function"))
    model.functions.append(helper.make_function("x", "f", [], ["e"], [inner], []))
    found = external_locations(model.SerializeToString())
    assert found == {"attribute", "branch", "initializer", "function"}
    with pytest.raises(ValueError):
        external_locations(model.SerializeToString()[:-3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_token_table(tmp_path: Path, dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    rows = np.random.default_rng(0).standard_normal((9, 5)).astype(kind)
    rows.tofile(tmp_path / "rows.bin")
    table = TokenTable(tmp_path / "rows.bin", dtype, (9, 5))
    np.testing.assert_array_equal(table([3, 3, 8]), rows[[3, 3, 8]].astype(np.float32))
