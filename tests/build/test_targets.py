"""Targets, profiles and options: what is chosen, and the sentence where it cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pixelrt.build.preflight import available_memory, examine
from pixelrt.build.profiles import Sizes, profiles_of
from pixelrt.build.targets import TARGETS, find_target
from pixelrt.bundle import Tensor
from pixelrt.cli.build import time_left, workspace_of
from pixelrt.errors import InputError
from pixelrt.gpu import Gpu, find_gpu
from pixelrt.tensorrt import Library

ORIN = Gpu("Orin", "sm_87", 8 << 30, True, "12.6")
TRT = Library("tensorrt", SimpleNamespace(), "10.3.0", "12")  # type: ignore[arg-type]
RTX = Library(
    "tensorrt-rtx",
    SimpleNamespace(ComputeCapability=type("C", (), dict.fromkeys(("SM86", "SM120", "SM89", "NONE")))),  # type: ignore[arg-type]
    "1.7.1.116",
    "13",
)
MANIFEST: dict[str, Any] = {
    "family": "pixellm",
    "language": {"max_positions": 2048},
    "tokens": {"image_tokens": 256},
}


def test_auto_is_the_gpu_here() -> None:
    target = find_target("auto", TRT, ORIN)
    assert (target.name, target.architecture, target.memory, target.shared) == (
        "sm_87",
        "sm_87",
        8 << 30,
        True,
    )
    assert find_target("orin-nx", TRT, ORIN).architecture == "sm_87"


def test_rtx_builds_for_gpus_that_are_not_here() -> None:
    assert RTX.architectures() == ("sm_86", "sm_89", "sm_120")
    assert find_target("rtx-ada", RTX, None).architecture == "sm_89"
    assert find_target("sm_120", RTX, ORIN).memory is None


@pytest.mark.parametrize(
    ("name", "library", "gpu", "sentence"),
    [
        ("orin", TRT, ORIN, "No target 'orin'. Choose one of: auto, orin-nano"),
        ("thor", TRT, ORIN, "thor is sm_110; this GPU .Orin. is sm_87, and TensorRT 10.3.0 .* --target auto"),
        (
            "thor",
            TRT,
            None,
            "builds for the GPU it runs on, and none is found here. Run this on the Jetson AGX Thor",
        ),
        ("rtx-ada", TRT, None, "none is found here.*--backend tensorrt-rtx"),
        (
            "thor",
            RTX,
            None,
            "builds for sm_86, sm_89, sm_120; thor is sm_110. Build on the Jetson AGX Thor itself",
        ),
        ("auto", RTX, None, "Name one: --target rtx-ampere or rtx-ada or rtx-blackwell"),
    ],
)
def test_a_target_that_cannot_be_built_for(
    name: str, library: Library, gpu: Gpu | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        find_target(name, library, gpu)


def test_every_target_says_what_it_is() -> None:
    for name, target in TARGETS.items():
        assert name == target.name and target.what and target.memory and target.precisions


def test_profiles_cover_a_first_pass_and_a_step() -> None:
    inputs = (
        Tensor("inputs_embeds", "activations", ("B", "S", 64)),
        Tensor("attn_mask", "bool", ("B", 1, "S", "T")),
        Tensor("past.0.key", "activations", ("B", 2, "M", 32)),
        Tensor("fixed", "float32", (1, 7)),
    )
    sizes = Sizes.of(MANIFEST, batch=3)
    assert (sizes.prefill, sizes.cache) == (512, 1024)
    profiles = profiles_of("language", inputs, sizes, empty=True)
    assert list(profiles) == ["decode", "prefill"]
    assert profiles["decode"]["inputs_embeds"] == ((1, 1, 64), (1, 1, 64), (3, 8, 64))
    assert profiles["prefill"]["attn_mask"] == ((1, 1, 1, 1), (1, 1, 512, 512), (3, 1, 512, 1024))
    assert profiles["decode"]["past.0.key"] == ((1, 2, 1024, 32), (1, 2, 1024, 32), (3, 2, 1024, 32))
    assert "fixed" not in profiles["decode"]
    assert list(profiles_of("encoder", inputs[3:], sizes, empty=True)) == ["image"]


def test_past_and_new_tokens_add_up_in_the_twin() -> None:
    """TensorRT refuses a profile in which P + S is not T."""
    inputs = (Tensor("x", "bool", ("S",)), Tensor("p", "bool", ("P",)), Tensor("t", "bool", ("T",)))
    for profile in profiles_of("language", inputs, Sizes.of(MANIFEST), empty=True).values():
        for x, p, t in zip(profile["x"], profile["p"], profile["t"], strict=True):
            assert x[0] + p[0] == t[0]


@pytest.mark.parametrize("options", [{"cache": 4096}, {"prefill": 200}, {"prefill": 600, "cache": 500}])
def test_sizes_that_do_not_fit(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"--cache-length is|--prefill is"):
        Sizes.of(MANIFEST, **options)


def test_a_size_of_an_unknown_letter() -> None:
    with pytest.raises(InputError, match="x has sizes Z unknown to this pixelrt"):
        profiles_of("encoder", (Tensor("x", "bool", ("Z",)),), Sizes.of(MANIFEST), empty=True)


def test_workspace_in_trtexecs_words() -> None:
    assert (
        workspace_of("workspace:2048")
        == workspace_of("workspace:2G")
        == workspace_of("workspace:2GiB")
        == 2 << 30
    )
    assert workspace_of("workspace:0.5K") == 512 and workspace_of(None) is None
    for wrong in ("2048", "workspace:", "workspace:2T", "tacticSharedMem:1", "workspace:0"):
        with pytest.raises(InputError, match="workspace:2048"):
            workspace_of(wrong)


def test_time_left() -> None:
    assert time_left(10, 0.25) == ", about 30 s left"
    assert time_left(60, 0.1) == ", about 9 min left"
    assert time_left(1, 0.5) == time_left(10, 0.0) == time_left(10, 1.0) == ""


def test_memory_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert available_memory(tmp_path, meminfo) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("10000\n")
    assert available_memory(tmp_path, meminfo) == 20000
    assert available_memory(tmp_path, tmp_path / "none") is None


def test_what_would_not_run_on_the_target_is_said(tmp_path: Path) -> None:
    part: Any = SimpleNamespace(graph="language", weights=7 << 30, cache=1 << 30, precision="fp16")
    found = {f.what: f for f in examine([part], TARGETS["orin-nano"], tmp_path, None, 64 << 30)}
    assert not found["to run"].good and not found["to run"].fatal
    assert found["memory"].good
    assert not examine([part], TARGETS["orin-nano"], tmp_path, None, 8 << 30)[1].good


def test_no_driver_is_no_gpu() -> None:
    assert find_gpu(library="libnot-there.so.1") is None
