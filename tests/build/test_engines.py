"""An engine that must not be loaded here is refused before TensorRT sees it, each for its own reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pixelrt.bundle import Bundle
from pixelrt.engines import (
    EngineRecord,
    Engines,
    Here,
    Value,
    check,
    find_engines,
    fingerprint_of,
    folder_of,
    read_engines,
    write_engines,
)
from pixelrt.errors import InputError
from pixelrt_kernels.library import DEVICE, source_hash

HERE = Here("tensorrt", "10.13.3", "13", "sm_110")
CONTENT = b"an engine" * 99


@pytest.fixture
def engines(bundle: Path) -> Engines:
    from hashlib import sha256

    folder = folder_of(bundle, "thor", "tensorrt")
    folder.mkdir(parents=True)
    (folder / "encoder.engine").write_bytes(CONTENT)
    stands_for = fingerprint_of(Bundle.read(bundle), "encoder", "float16")
    record = EngineRecord(
        graph="encoder",
        source="encoder",
        file="encoder.engine",
        bytes=len(CONTENT),
        sha256=sha256(CONTENT).hexdigest(),
        fingerprint=stands_for,
        stands_for=stands_for,
        precision="fp16",
        activations="float16",
        flavour="tensorrt",
        version="10.13.3",
        cuda="13",
        architecture="sm_110",
        kernels=None,
        profiles={"image": {"pixels": ((1, 3), (1, 3), (2, 3))}},
        cache_length=None,
        inputs={"pixels": Value("float32", ("B", 3))},
        outputs={},
        layers=3,
        seconds=1.5,
    )
    found = Engines(folder, "thor", {"encoder": record})
    write_engines(found)
    return found


def test_what_is_written_is_read(engines: Engines, bundle: Path) -> None:
    assert read_engines(engines.folder) == engines
    assert check(engines, "encoder", HERE, Bundle.read(bundle)) == engines.folder / "encoder.engine"


def of(**change: object) -> Callable[[Engines], Engines]:
    def changed(engines: Engines) -> Engines:
        record = replace(engines.records["encoder"], **change)  # type: ignore[arg-type]
        return replace(engines, records={"encoder": record})

    return changed


@pytest.mark.parametrize(
    ("change", "here", "sentence"),
    [
        (of(), replace(HERE, architecture=None), "needs an NVIDIA GPU .sm_110., and none .* --backend onnxruntime"),
        (of(), replace(HERE, architecture="sm_87"), "built for sm_110; this GPU is sm_87. Run here: pixelrt build"),
        (of(), replace(HERE, version="10.3.0"), "tensorrt 10.13.3; 10.3.0 is installed here, .*: pixelrt build"),
        (of(), replace(HERE, flavour="tensorrt-rtx"), "built by tensorrt; tensorrt-rtx .* --backend tensorrt-rtx"),
        (of(), replace(HERE, cuda="12"), "built for CUDA 13; CUDA 12 is here"),
        (of(stands_for="0" * 64), HERE, "built from another export of this bundle. Run: pixelrt build .*--target thor"),
        (of(kernels="a" * 64), HERE, "holds kernels aaaaaaaaaaaa; no kernels are here"),
        (of(kernels="a" * 64), replace(HERE, kernels=source_hash(DEVICE)), "holds kernels a.*; kernels .* are here"),
        (of(bytes=len(CONTENT) + 1), HERE, "is cut off: it has 891 bytes of 892. Run: pixelrt build"),
        (of(bytes=len(CONTENT) - 1), HERE, "is not the file that was built"),
        (of(sha256="0" * 64), HERE, "was altered: its SHA-256"),
        (of(file="gone.engine"), HERE, "gone.engine is missing"),
    ],
)  # fmt: skip
def test_each_mismatch_has_its_sentence(
    engines: Engines, bundle: Path, change: Callable[[Engines], Engines], here: Here, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        check(change(engines), "encoder", here, Bundle.read(bundle))


def test_a_graph_whose_build_did_not_finish(engines: Engines, bundle: Path) -> None:
    with pytest.raises(
        InputError, match=r"no engine for language: its build did not finish. Run: pixelrt build"
    ):
        check(engines, "language", HERE, Bundle.read(bundle))


def test_engines_for_this_machine_are_found(engines: Engines, bundle: Path) -> None:
    read = Bundle.read(bundle)
    other = folder_of(bundle, "rtx-ada", "tensorrt-rtx")
    other.mkdir()
    record = replace(engines.records["encoder"], flavour="tensorrt-rtx", architecture="sm_89")
    write_engines(Engines(other, "rtx-ada", {"encoder": record}))
    assert find_engines(read, HERE).target == "thor"
    assert find_engines(read, replace(HERE, flavour="tensorrt-rtx", architecture="sm_89")).target == "rtx-ada"


def test_no_engines_at_all(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no engines. Run here: pixelrt build"):
        find_engines(Bundle.read(bundle), HERE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda d: d.update(format=2),
            "has format 2; this pixelrt reads 1. Run: pixelrt build .* --target thor",
        ),
        (lambda d: d["engines"]["encoder"].pop("sha256"), "lacks sha256"),
        (lambda d: d["engines"]["encoder"].update(file="../manifest.json"), "which lies elsewhere"),
        (lambda d: d["engines"]["encoder"].update(bytes="many"), "bytes is 'many'"),
        (lambda d: d["engines"]["encoder"].update(profiles={"a": {"x": [[1], [1]]}}), "a list of 3"),
    ],
)
def test_a_list_that_is_off(engines: Engines, change: Callable[[dict], None], sentence: str) -> None:
    file = engines.folder / "engines.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=sentence):
        read_engines(engines.folder)


def test_a_list_that_is_cut_off(engines: Engines) -> None:
    file = engines.folder / "engines.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="is not JSON"):
        read_engines(engines.folder)
