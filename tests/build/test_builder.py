"""A build with the builder's double: what is kept, what is refused, and what lies there whatever ends it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pixelrt.build import engine_folder
from pixelrt.build.builder import Wish, build_engines, site_of
from pixelrt.bundle import Bundle
from pixelrt.engines import Engines, check, folder_of, read_engines
from pixelrt.errors import InputError

GRAPHS = {"encoder", "language", "pixel_decoder"}
KILLED = """
import sys
from pixelrt.build import builder
from pixelrt.gpu import Gpu
builder.find_gpu = lambda: Gpu("Orin", "sm_87", 8 << 30, True, "12.6")
from pixelrt.cli import main
main(["build", *sys.argv[1:]])
"""


def built(folder: Path, **wish: object) -> tuple[Engines, list[str]]:
    """Build and give the engines, and the lines that were said."""
    bundle, lines = Bundle.read(folder), []
    wanted = Wish(**wish)  # type: ignore[arg-type]
    return build_engines(bundle, site_of(bundle, wanted), wanted, say=lines.append), lines


def all_whole(folder: Path) -> set[str]:
    """The graphs that may be loaded; an engine that is there but not whole raises."""
    bundle = Bundle.read(folder)
    place = folder_of(folder, "sm_87", "tensorrt")
    if not (place / "engines.json").exists():
        return set()
    engines = read_engines(place)
    for graph in engines.records:
        check(engines, graph, site_of(bundle, Wish()).here, bundle)
    return set(engines.records)


def test_every_graph_becomes_an_engine_that_may_be_loaded(double: pytest.MonkeyPatch, bundle: Path) -> None:
    engines, lines = built(bundle)
    assert all_whole(bundle) == engines.records.keys() == GRAPHS
    language = engines.records["language"]
    assert (language.source, language.architecture, language.precision) == ("language", "sm_87", "fp16")
    assert list(language.profiles) == ["decode", "prefill"]
    assert language.inputs["past.0.key"].shape[2] == language.cache_length
    assert language.inputs["inputs_embeds"].dtype == "float16"
    assert any("free" in line and line.endswith("ok") for line in lines)
    assert read_engines(engines.folder) == engines


def test_finished_engines_are_kept_and_only_what_changed_is_built(
    here: pytest.MonkeyPatch, bundle: Path
) -> None:
    first, _ = built(bundle)
    times = {graph: first.path(graph).stat().st_mtime_ns for graph in GRAPHS}
    second, lines = built(bundle, sizes={"cache": first.records["language"].cache_length + 64})
    changed = {graph for graph in GRAPHS if second.path(graph).stat().st_mtime_ns != times[graph]}
    assert changed == {"language"}
    assert sum(line.endswith(", kept") for line in lines) == 2
    assert (second.folder / "timing.cache").is_file()


def test_an_engine_that_was_altered_is_built_again(here: pytest.MonkeyPatch, bundle: Path) -> None:
    engines, _ = built(bundle)
    file = engines.path("encoder")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(InputError, match=r"encoder\.engine was altered.*pixelrt build .* --target sm_87"):
        all_whole(bundle)
    built(bundle)
    assert file.read_bytes() == whole


def test_before_10_15_the_twin_is_built(here: pytest.MonkeyPatch, bundle: Path) -> None:
    here.setenv("DOUBLE_VERSION", "10.3.0")
    language = built(bundle)[0].records["language"]
    assert (language.source, language.cache_length) == ("language_compat", None)


def test_an_old_tensorrt_and_none_at_all(here: pytest.MonkeyPatch, bundle: Path) -> None:
    here.setenv("DOUBLE_VERSION", "8.6.1")
    with pytest.raises(InputError, match=r"TensorRT 8\.6\.1 is too old: 10\.3 or newer"):
        built(bundle)


def test_what_a_device_refuses_in_int8_is_taken_from_the_fallback(
    here: pytest.MonkeyPatch, bundle: Path, golden_checkpoint_a: Path, tmp_path: Path
) -> None:
    """Here int8 alone has a QuantizeLinear; the sentence names the export, and with a second bundle it is built."""
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    int8 = export_bundle(
        golden_checkpoint_a,
        tmp_path / "int8",
        precision="fp16",
        stages={"encoder": "int8"},
        settings=Settings(calib=_pictures(tmp_path)),
    )
    here.setenv("DOUBLE_REFUSES", "QuantizeLinear")
    with pytest.raises(InputError, match=r"refuses encoder in int8: QuantizeLinear \(some/Q.*--encoder fp16"):
        built(int8)
    assert all_whole(int8) == {"language", "pixel_decoder"}
    engines, _ = built(int8, fallback=bundle)
    record = engines.records["encoder"]
    assert (record.precision, record.refused[:5]) == ("fp16", "int8:")
    assert record.fingerprint != record.stands_for
    assert all_whole(int8) == GRAPHS
    _, lines = built(int8, fallback=bundle)
    assert sum(line.endswith(", kept") for line in lines) == 3


def test_a_fallback_of_another_checkpoint_is_refused(
    here: pytest.MonkeyPatch, bundle: Path, golden_bundle_b: Path
) -> None:
    with pytest.raises(InputError, match="was not exported from the checkpoint"):
        built(bundle, fallback=golden_bundle_b)


def _pictures(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    (folder / "pictures").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "pictures" / "0.png")
    return folder / "pictures"


def test_a_builder_that_crashes_costs_one_sentence(double: pytest.MonkeyPatch, bundle: Path) -> None:
    double.setenv("DOUBLE_CRASHES", "1")
    with pytest.raises(RuntimeError, match="TensorRT ended the builder by SIGABRT"):
        built(bundle)
    assert all_whole(bundle) == set()
    assert not list(folder_of(bundle, "sm_87", "tensorrt").glob(".*partial"))


def test_too_little_memory_is_said_before_the_long_part(here: pytest.MonkeyPatch, bundle: Path) -> None:
    from pixelrt.build import builder

    here.setattr(builder, "available_memory", lambda: 1 << 20)
    with pytest.raises(
        InputError, match=r"memory will not do \(about 3\d\d MB to build .*, 1 MB free\).*--force"
    ):
        built(bundle)
    built(bundle, force=True, only=["encoder"])
    assert all_whole(bundle) == {"encoder"}


class Death(BaseException):
    """The process ends here: nothing after it runs."""


def test_whatever_ends_a_build_nothing_half_is_listed(here: pytest.MonkeyPatch, bundle: Path) -> None:
    """Death before every single change of the folder, one after the other; each rerun goes on from there."""
    real, left = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise Death
        left -= 1
        return real(self, target)

    built(bundle)
    folder = folder_of(bundle, "sm_87", "tensorrt")
    for steps in range(4):
        shutil.rmtree(folder)
        left = steps
        here.setattr(engine_folder.Path, "replace", replace)
        # What a killed process does not do either.
        here.setattr(engine_folder.EngineFolder, "clear_partials", lambda self: None)
        with pytest.raises(Death):
            built(bundle, only=["encoder", "language"])
        here.setattr(engine_folder.Path, "replace", real)
        listed = all_whole(bundle)
        assert len(listed) == (1 if steps >= 3 else 0), steps
        built(bundle, only=["encoder", "language"])
        assert all_whole(bundle) == {"encoder", "language"}


def start(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    from tests.build.conftest import DOUBLE

    paths = [str(DOUBLE), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DOUBLE_SECONDS": str(seconds)}
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def wait_until_building(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until one engine is listed and the builder works on the next."""
    listed = folder_of(folder, "sm_87", "tensorrt") / "engines.json"
    while process.poll() is None and not (listed.exists() and b"encoder.engine" in _read(listed)):
        time.sleep(0.02)


def test_ctrl_c_leaves_no_half_file_and_a_rerun_goes_on(double: pytest.MonkeyPatch, bundle: Path) -> None:
    process = start(bundle, 1.0)
    wait_until_building(bundle, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    folder = folder_of(bundle, "sm_87", "tensorrt")
    assert not list(folder.glob(".*partial"))
    assert all_whole(bundle) == {"encoder"}
    built(bundle)
    assert all_whole(bundle) == GRAPHS


def test_two_builds_in_one_folder(here: pytest.MonkeyPatch, bundle: Path) -> None:
    with (
        engine_folder.opened(folder_of(bundle, "sm_87", "tensorrt"), "sm_87"),
        pytest.raises(InputError, match="Another build is at work"),
    ):
        built(bundle)


@pytest.mark.slow
def test_killed_at_ten_random_moments(double: pytest.MonkeyPatch, bundle: Path) -> None:
    """SIGKILL; what is listed is whole each time, and the last run completes. The seed is printed."""
    begun = time.perf_counter()
    assert start(bundle, 0.5).wait() == 0
    whole_build = time.perf_counter() - begun
    assert all_whole(bundle) == GRAPHS
    shutil.rmtree(bundle / "engines")
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    for _ in range(10):
        process = start(bundle, 0.5)
        time.sleep(moments.uniform(0.1, 1.0) * whole_build)
        process.kill()
        process.wait()
        whole = all_whole(bundle)
        print("seed", seed, sorted(whole))
        if len(whole) > 1:
            shutil.rmtree(bundle / "engines")
    built(bundle)
    assert all_whole(bundle) == GRAPHS
    document = json.loads((folder_of(bundle, "sm_87", "tensorrt") / "engines.json").read_text())
    assert set(document["engines"]) == GRAPHS
