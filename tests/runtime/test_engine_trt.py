"""TensorRT's runtime over test doubles of PyCUDA and TensorRT (tests/doubles): no GPU, no TensorRT.

The doubles check every address, shape, profile and the order of all work. What they cannot show is listed in
docs/tensorrt.md.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from pixelrt import backends
from pixelrt.bundle import Bundle
from pixelrt.engine import Joined
from pixelrt.engine_ort import OrtBackend
from pixelrt.errors import InputError, MissingExtra
from pixelrt.language import Context

from tests.doubles.bundle import Doubles, Sizes, installed, with_engines
from tests.doubles.machine import Fault

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "pixellm-tiny"
RNG = np.random.default_rng(7)


@pytest.fixture
def doubles() -> Iterator[Doubles]:
    with installed() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pixellm-tiny, whose pictures are small, exported."""
    pytest.importorskip("safetensors", reason="needs the export extra")
    from pixelrt_export.export import export_bundle

    return export_bundle(CHECKPOINT, tmp_path_factory.mktemp("bundles") / "pixellm-tiny")


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_engines(small, tmp_path_factory.mktemp("engines") / "pixellm-tiny")


@pytest.fixture
def backend(doubles: Doubles, built: Path) -> Any:
    from pixelrt.engine_trt import TrtBackend

    return TrtBackend(Bundle.read(built, verify=False))


@pytest.fixture
def reference(built: Path) -> OrtBackend:
    return OrtBackend(Bundle.read(built, verify=False), compatible=False)


def encoder_inputs(backend: Any, seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {t.name: t.shape for t in backend.bundle.graph("encoder", activations="float32").inputs}
    rng = np.random.default_rng(seed)
    return {
        "pixels": rng.normal(size=(1, *shapes["pixels"][1:])).astype(np.float32),
        "patch_valid": np.ones((1, shapes["patch_valid"][1]), bool),
    }


def width(backend: Any) -> int:
    return int(backend.bundle.manifest["language"]["hidden"])


def rows(backend: Any, count: int) -> np.ndarray:
    return RNG.normal(size=(count, width(backend))).astype(np.float32)


# ---- one engine ----------------------------------------------------------------------------------------------


def test_outputs_stay_on_the_gpu_until_they_are_asked_for(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    waits = doubles.machine.waits
    out = engine(inputs)
    assert doubles.machine.waits == waits  # the host went on
    wanted = reference.open("encoder")(inputs)
    assert out.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (out[name].shape, out[name].dtype) == (value.shape, value.dtype)
        assert np.array_equal(np.asarray(out[name]), value), name


def test_two_calls_before_anybody_reads(backend: Any, reference: Any) -> None:
    """The second must not write pinned memory that the first is still copied from."""
    engine, other = backend.open("encoder"), reference.open("encoder")
    inputs = [encoder_inputs(backend, seed) for seed in range(2)]
    for out, given in zip([engine(given) for given in inputs], inputs, strict=True):
        wanted = other(given)
        assert all(np.array_equal(np.asarray(out[name]), wanted[name]) for name in wanted)


def test_what_is_on_the_gpu_is_not_copied_to_the_next_graph(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    features = backend.open("encoder")(encoder_inputs(backend))
    features.pop("image_tokens")
    decoder = backend.open("pixel_decoder")
    shape = next(t.shape for t in decoder.file.inputs if t.name == "seg_hidden")
    hidden = RNG.normal(size=(2, *shape[1:])).astype(np.float32)
    got = decoder({"seg_hidden": hidden, **features})["low_res_masks"]
    wanted = reference.open("pixel_decoder")(
        {"seg_hidden": hidden, **{name: np.asarray(value) for name, value in features.items()}}
    )["low_res_masks"]
    assert np.array_equal(np.asarray(got), wanted)
    to_gpu = [what for _, what in doubles.machine.done if what == "copy to GPU"]
    assert len(to_gpu) == 3  # pixels, patch_valid, seg_hidden


def test_the_profile_is_the_narrowest_that_fits(backend: Any) -> None:
    engine = backend.open("language")
    context = Context(engine, 100)
    context(rows(backend, 30), [29])
    context(rows(backend, 1), [0])
    context(rows(backend, 6), range(6))
    decode, prefill = engine.profiles
    assert (decode.context.runs, prefill.context.runs) == (2, 1)
    assert decode.context.profile == 1 and prefill.context.profile == 0


def test_a_shape_that_no_profile_has(backend: Any) -> None:
    engine, features = backend.open("pixel_decoder"), encoder_inputs(backend)
    features = backend.open("encoder")(features)
    shape = next(t.shape for t in engine.file.inputs if t.name == "seg_hidden")
    features.pop("image_tokens")
    with pytest.raises(InputError, match=r"pixel_decoder engine takes seg_hidden from 1 x .* not 5 x"):
        engine({"seg_hidden": np.zeros((5, *shape[1:]), np.float32), **features})
    assert engine.memory.most("seg_hidden", 0) == 4


# ---- the cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["language", "language_compat"])
def test_the_cache(
    language: str, doubles: Doubles, small: Path, tmp_path: Path, reference: OrtBackend
) -> None:
    """Prefill in pieces, decoding one and several, going back: as ONNX Runtime, to the last bit."""
    from pixelrt.engine_trt import TrtBackend

    folder = with_engines(small, tmp_path / "b", Sizes(prefill=16), language)
    backend = TrtBackend(Bundle.read(folder, verify=False))
    engine = backend.open("language")
    contexts = [Context(engine, 200), Context(reference.open("language"), 200)]
    steps = [rows(backend, n) for n in (40, 1, 6, 3)]
    visible = RNG.random(40) > 0.2
    for context in contexts:
        context(steps[0], [3, 20, 39], visible)
        context(steps[1], [0])
    got, wanted = (context(steps[2], range(6)) for context in contexts)
    # Both read the same numbers; attention over more masked positions may add in another order.
    np.testing.assert_allclose(got.logits, wanted.logits, atol=2e-5)
    for context in contexts:
        context.rewind(17)
    got, wanted = (context(steps[3], [2, 0]) for context in contexts)
    np.testing.assert_allclose(got.hidden, wanted.hidden, atol=2e-5)


def test_rows_asked_for_come_back_in_their_order(
    backend: Any, doubles: Doubles, small: Path, tmp_path: Path
) -> None:
    from pixelrt.engine_trt import TrtBackend

    folder = with_engines(small, tmp_path / "b", Sizes(prefill=16))
    narrow = TrtBackend(Bundle.read(folder, verify=False)).open("language")
    prompt, asked = rows(backend, 50), [40, 0, 39, 17, 49]
    got = Context(narrow, 60)(prompt, asked)
    wanted = Context(backend.open("language"), 60)(prompt, asked)
    np.testing.assert_allclose(got.hidden, wanted.hidden, atol=2e-5)
    np.testing.assert_allclose(got.logits, wanted.logits, atol=2e-5)


def test_a_cache_holds_what_the_engine_was_built_for(backend: Any) -> None:
    engine = backend.open("language")
    assert Context(engine, 10).capacity == 512
    with pytest.raises(ValueError, match="cache holds 512 tokens, 600"):
        Context(engine, 600)


def test_attended_lengths_are_rounded_up_and_masked(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend.open("language")
    prompt, step = rows(backend, 20), rows(backend, 1)
    results = []
    for rounded in (1, 128):
        engine.step = rounded
        context = Context(engine, 100)
        context(prompt, [19])
        results.append(context(step, [0]).logits)
    np.testing.assert_allclose(*results, atol=2e-5)


def test_an_old_context_leaves_nothing_behind(backend: Any) -> None:
    """Memory is used again; a nan that a context left must not reach the next one through 0 * nan."""
    engine = backend.open("language")
    prompt = rows(backend, 20)
    first = Context(engine, 100)
    wanted = first(prompt, [19]).logits
    first(np.full((1, width(backend)), np.nan, np.float32), [0])
    del first
    assert np.array_equal(Context(engine, 100)(prompt, [19]).logits, wanted)


# ---- CUDA graphs ---------------------------------------------------------------------------------------------


def test_the_third_call_alike_is_a_graph(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, open_reference = backend.open("encoder"), reference.open("encoder")
    for turn in range(5):
        inputs = encoder_inputs(backend, seed=turn)
        out, wanted = engine(inputs), open_reference(inputs)
        assert all(np.array_equal(np.asarray(out[name]), wanted[name]) for name in wanted)
        del out  # so that its memory, and the addresses, are used again
    assert doubles.libcuda.launched == 3
    assert engine.profiles[0].context.runs == 3  # plain, plain and captured


def test_other_addresses_are_another_graph(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    kept = [engine(inputs) for _ in range(4)]
    assert doubles.libcuda.launched == 0
    wanted = reference.open("encoder")(inputs)["image_tokens"]
    assert all(np.array_equal(np.asarray(out["image_tokens"]), wanted) for out in kept)


def test_decoding_steps_are_graphs(backend: Any, reference: Any, doubles: Doubles) -> None:
    engine, other = backend.open("language"), reference.open("language")
    prompt, steps = rows(backend, 20), [rows(backend, 1) for _ in range(8)]
    for _ in range(2):
        contexts = [Context(engine, 100), Context(other, 100)]
        for context in contexts:
            context(prompt, [19])
        for step in steps:
            got, wanted = (context(step, [0]).logits for context in contexts)
            np.testing.assert_allclose(got, wanted, atol=2e-5)
        del contexts, context  # so that the next ones have their addresses
    # The first two steps of all, and the first two prompts, are no graphs.
    assert doubles.libcuda.launched == 14


def test_graphs_are_few(backend: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelrt.engine_trt.GRAPHS_MAX", 3)
    engine = backend.open("language")
    for count in range(1, 8):
        for _ in range(2):
            context = Context(engine, 100)
            context(rows(backend, count), [0])
            del context
    assert doubles.libcuda.alive == 3


def test_an_engine_that_cannot_be_captured_runs_without(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    doubles.libcuda.refuses = True
    engine, inputs = backend.open("encoder"), encoder_inputs(backend)
    engine(inputs)
    with pytest.warns(pixelrt.errors.PixelrtWarning, match="encoder engine runs without CUDA graphs"):
        engine(inputs)
    out = engine(inputs)["image_tokens"]
    assert np.array_equal(np.asarray(out), reference.open("encoder")(inputs)["image_tokens"])
    assert doubles.libcuda.launched == 0


# ---- order ---------------------------------------------------------------------------------------------------


def test_the_next_picture_does_not_wait_for_the_language_graph(
    backend: Any, reference: Any, doubles: Doubles
) -> None:
    """Two streams: work is given to both before the host waits for either."""
    encoder, engine = backend.open("encoder"), backend.open("language")
    frame = encoder(encoder_inputs(backend))
    tokens = frame["image_tokens"][0]
    head, count = rows(backend, 3), len(tokens)
    context = Context(engine, count + 6)
    waits = doubles.machine.waits
    read = context.read(
        Joined((head, tokens, head)), {"logit_rows": np.array([count], np.int64)}, np.ones(count + 6, bool)
    )
    following = encoder(encoder_inputs(backend, seed=1))
    # Twice: before each engine's pinned memory is written again.
    assert doubles.machine.waits - waits <= 2
    got = np.asarray(read["logits"])
    streams = {stream for stream, what in doubles.machine.done if what.startswith("engine")}
    assert len(streams) == 2
    wanted = Context(reference.open("language"), count + 6)
    rest = wanted(np.concatenate([head, np.asarray(tokens), head]), [count])
    np.testing.assert_allclose(got[0], rest.logits, atol=2e-5)
    assert np.isfinite(np.asarray(following["level0"])).all()


class During:
    """Does something on another thread in the middle of the next capture, as `pixelrt.pipeline` may."""

    def __init__(self, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, wait_s: float) -> None:
        self.work: Any = None
        self.errors: list[Exception] = []
        self.thread = threading.Thread(target=self._run)
        begin = doubles.libcuda.cuStreamBeginCapture_v2

        def begun(stream: Any, mode: int) -> int:
            code = begin(stream, mode)
            if self.work is not None and self.thread.ident is None:
                self.thread.start()
                self.thread.join(wait_s)
            return code

        monkeypatch.setattr(doubles.libcuda, "cuStreamBeginCapture_v2", begun)

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.errors.append(error)


def test_masks_are_drawn_while_the_encoder_is_captured(
    backend: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = backend.open("encoder"), backend.open("pixel_decoder")
    features, inputs = encoder(encoder_inputs(backend)), encoder_inputs(backend, seed=1)
    features.pop("image_tokens")
    shape = next(t.shape for t in decoder.file.inputs if t.name == "seg_hidden")
    given = {"seg_hidden": RNG.normal(size=(1, *shape[1:])).astype(np.float32), **features}
    wanted = np.asarray(decoder(given)["low_res_masks"])
    during = During(doubles, monkeypatch, wait_s=30)
    drawn: list[Any] = []
    during.work = lambda: drawn.append(decoder(given)["low_res_masks"])
    for _ in range(2):
        out = encoder(inputs)
        np.asarray(out["image_tokens"])
        del out
    during.thread.join()
    assert not during.errors and np.array_equal(np.asarray(drawn[0]), wanted)


def test_a_frame_is_begun_while_a_step_is_captured(
    backend: Any, reference: Any, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing a cache is work on the language graph's stream: it waits until the capture is over."""
    engine = backend.open("language")
    during = During(doubles, monkeypatch, wait_s=0.2)
    context, other = Context(engine, 100), Context(reference.open("language"), 100)
    made: list[Context] = []

    def begin() -> None:
        made.append(Context(engine, 100))
        made[0]._begin()

    during.work = begin
    for step in [rows(backend, 1) for _ in range(4)]:
        got, wanted = context(step, [0]).logits, other(step, [0]).logits
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    during.thread.join()
    assert not during.errors
    assert not np.asarray(made[0]._past["past.0.key"]).any()


@pytest.mark.parametrize("broken", ["after", "mark"])
def test_the_double_finds_a_missing_wait(
    backend: Any, broken: str, monkeypatch: pytest.MonkeyPatch, doubles: Doubles
) -> None:
    """Streams that do not wait for each other, and blocks that do not know their last work."""
    import pixelrt.cuda as cuda

    usual = cuda.Stream.mark
    if broken == "after":
        monkeypatch.setattr(cuda.Stream, "after", lambda self, blocks: None)
    else:
        monkeypatch.setattr(cuda.Stream, "mark", lambda self, blocks: usual(self, []))
    frame = backend.open("encoder")(encoder_inputs(backend))
    with pytest.raises(Fault, match="does not wait for"):
        Context(backend.open("language"), 400)(Joined((frame["image_tokens"][0],)), [0])
        np.asarray(frame["level0"])


# ---- arrays on the GPU ---------------------------------------------------------------------------------------


def test_arrays_are_cut_as_numpy_cuts(doubles: Doubles) -> None:
    from pixelrt.cuda import CudaDevice

    with CudaDevice() as device:
        host = RNG.normal(size=(4, 3, 5, 2)).astype(np.float32)
        stream = device.stream("test")
        array = device.empty(host.shape, host.dtype)
        device.upload(array.address, host, stream)
        stream.mark([array.block])
        for index in (
            1, -1, slice(1, 3), slice(4, 4), [2, 0, 2], np.array([3]),
            (slice(None), slice(0, 2)), (slice(None), slice(None), slice(0, 3)), (slice(1, 2), slice(None)),
        ):  # fmt: skip
            got = array[index]
            assert np.array_equal(np.asarray(got), host[index]), index
            assert got.shape == host[index].shape
        assert np.asarray(array, np.float64).dtype == np.float64
        for index in ((slice(0, 2), slice(0, 1)), slice(0, 4, 2), (0, 0)):
            with pytest.raises(TypeError, match="cannot be indexed"):
                array[index]
        with pytest.raises(IndexError):
            array[4]
        about = array.__cuda_array_interface__
        assert about["data"] == (array.address, False) and about["shape"] == host.shape
        assert about["typestr"] == "<f4" and about["version"] == 3


def test_large_arrays_come_in_pieces(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixelrt.cuda as cuda

    monkeypatch.setattr(cuda, "STAGING_BYTES", 64)
    with cuda.CudaDevice() as device:
        zeros = device.zeros((37,), np.float32, device.stream("test"))
        assert np.array_equal(np.asarray(zeros), np.zeros(37, np.float32))


def test_memory_is_used_again_at_the_same_addresses(doubles: Doubles) -> None:
    from pixelrt.cuda import CudaDevice

    with CudaDevice() as device:
        first = [device.empty((100,), np.float32) for _ in range(3)]
        addresses = [array.address for array in first]
        part = first[1][10:20]
        del first
        again = [device.empty((100,), np.float32).address for _ in range(2)]
        assert again == [addresses[0]] * 2
        del part
        assert [a.address for a in [device.empty((100,), np.float32) for _ in range(3)]] == addresses


def test_full_memory_is_emptied_of_what_nobody_uses(
    doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pixelrt.cuda as cuda

    allocate, room = cuda.driver.mem_alloc, [2]

    def scarce(size: int) -> Any:
        if not room[0]:
            raise cuda.driver.MemoryError("out of memory")
        room[0] -= 1
        return allocate(size)

    monkeypatch.setattr(cuda.driver, "mem_alloc", scarce)
    device = cuda.CudaDevice()
    with device:
        device.empty((10,), np.float32)
        device.pool.trim()
        device.empty((20,), np.float32)
        with pytest.raises(cuda.driver.MemoryError):
            device.empty((30,), np.float32)


# ---- which backend -------------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu_is_there", lambda: True)


def test_auto_takes_tensorrt(doubles: Doubles, built: Path, there: None) -> None:
    assert pixelrt.load(built).backend == "TensorRT 10.16.1 on a test double (sm_87)"


def test_auto_without_a_gpu_is_silent(doubles: Doubles, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu_is_there", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixelrt.load(built).backend == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "sm_90"}, "built for sm_90; this GPU is sm_87. Run here: pixelrt build "),
        ({"version": "10.3.0"}, "built by tensorrt 10.3.0; 10.16.1 is installed here"),
        ({"sha256": "0" * 64}, "was altered"),
        ({"stands_for": "0" * 64}, "another export"),
    ],
)
def test_auto_falls_through_with_what_mends_it(
    changes: dict[str, Any],
    sentence: str,
    doubles: Doubles,
    small: Path,
    tmp_path: Path,
    there: None,
) -> None:
    folder = with_engines(small, tmp_path / "b", **changes)
    with pytest.warns(pixelrt.errors.PixelrtWarning) as caught:
        assert pixelrt.load(folder).backend == "onnxruntime-cpu"
    assert [sentence in str(warning.message) for warning in caught] == [True]
    assert "pixelrt build" in str(caught[0].message)
    with pytest.raises(InputError, match=sentence[:20]):
        pixelrt.load(folder, backend="tensorrt")
    assert not doubles.trt.engines  # none of them was deserialised


def test_an_engine_that_tensorrt_refuses(doubles: Doubles, small: Path, tmp_path: Path) -> None:
    import hashlib

    folder = with_engines(small, tmp_path / "b", bytes=5, sha256=hashlib.sha256(b"noise").hexdigest())
    for file in folder.glob("engines/*/*.engine"):
        file.write_bytes(b"noise")
    with pytest.raises(InputError, match=r"cannot load .*: the magic tag does not match. Run here: pixelrt"):
        pixelrt.load(folder, backend="tensorrt")


def test_named_backends_that_are_not_there(small: Path) -> None:
    with pytest.raises(InputError, match=r"No backend 'gpu'. Choose one of: auto, tensorrt, tensorrt-rtx"):
        pixelrt.load(small, backend="gpu")
    with pytest.raises(InputError, match=r"has no CUDA\. Run: pip"):
        pixelrt.load(small, backend="onnxruntime-cuda")


def test_a_bundle_without_engines(doubles: Doubles, small: Path, there: None) -> None:
    with pytest.raises(InputError, match=r"has no engines\. Run here: pixelrt build"):
        pixelrt.load(small, backend="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixelrt.load(small).backend == "onnxruntime-cpu"


def test_pycuda_that_is_not_installed(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pycuda", None)
    for name in ("pycuda.driver", "pixelrt.cuda", "pixelrt.engine_trt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtra, match=r"pycuda is not installed. Run: pip install 'pixelrt\[cuda\]'"):
        pixelrt.load(built, backend="tensorrt")


def test_the_record_survives_the_list(built: Path) -> None:
    """The doubles' engines are read from the same file as real ones."""
    document = json.loads(next(built.glob("engines/*/engines.json")).read_text())
    assert document["engines"]["language"]["cache_length"] == 512
