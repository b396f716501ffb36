"""The bundle under test: its graph files as they are, with the places that the manifest names as further outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from pixelrt.bundle import Bundle
from pixelrt.engine import CACHE_IN, Array, Backend, Engine, HostMemory
from pixelrt.engine_ort import CPU, OrtBackend, as_written, return_freed_weights
from pixelrt.errors import InputError
from pixelrt.language import Context
from pixelrt.recording import GRAPHS, noted
from pixelrt.recording import Call as Recorded
from pixelrt.segmenter import Segmenter, open_bundle

from pixelrt_export.verify.convoy import Call, Shared, carry
from pixelrt_export.verify.original import Question, Reading, Said
from pixelrt_export.verify.pieces import Piece, largest_widened, model_of, pieces, stored_bytes

T, R = TypeVar("T"), TypeVar("R")
# Bytes on disk up to which a graph is opened as a whole; in memory, in fp32, it takes two to three times that.
WHOLE = 1 << 28
# Bytes of a tensor in 16 bits up to which it may be widened when its piece is opened: that takes four times as much
# for a moment, the widened one and that repacked.
WIDENED = 1 << 26
# Caches of several questions, and how many tokens one of them is taken to have: 330 MB each at 7B.
CACHES, POSITIONS = 7 << 27, 320

# ONNX Runtime looks for external tensors beside the model, and a model in memory lies nowhere.
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class TappedEngine:
    """One graph on ONNX Runtime's CPU provider, as `pixelrt.engine.Engine`, in fp32 activations.

    A graph whose stored tensors take more than `whole` bytes is cut at its places and run piece by piece, one of them
    in memory at a time; several calls together open each piece once.
    """

    def __init__(self, bundle: Bundle, name: str, taps: Callable[[str], bool], whole: int) -> None:
        """taps: of the manifest's places, those that are returned beside the outputs."""
        self.file, self.memory = bundle.graph(name, activations="float32"), HostMemory()
        self._folder = str(bundle.path.resolve())
        self._model = onnx.load(self.file.path, load_external_data=False)
        graph = self._model.graph
        places: dict[str, str] = dict(bundle.manifest["graphs"][name].get("taps", {}))
        made = {value for node in graph.node for value in node.output}
        if missing := [place for place, value in places.items() if value not in made]:
            raise InputError(f"{self.file.path} has no place {missing[0]}. Export the bundle again.")
        self.taps = {place: value for place, value in places.items() if taps(place)}
        self._outputs = [output.name for output in graph.output]
        self._inputs = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in graph.input
        }
        self.cut = stored_bytes(self._model) > whole
        cuts = list(places.values()) if self.cut else []
        self._pieces = pieces(graph, cuts, {*self._outputs, *self.taps.values()})
        self._kept: dict[int, onnxruntime.InferenceSession] = {}
        return_freed_weights()

    def __call__(
        self, inputs: Mapping[str, Any], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        return self.together([(inputs, into)])[0]

    def together(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        """The outputs of each, and the places."""
        values: list[dict[str, Array]] = [
            {name: np.ascontiguousarray(inputs[name], kind) for name, kind in self._inputs.items()}
            for inputs, _ in calls
        ]
        found: list[dict[str, Array]] = [{} for _ in calls]
        wanted = {*self._outputs, *self.taps.values()}
        for number, piece in enumerate(self._pieces):
            session = self._session(number, piece, {name: values[0][name].dtype for name in piece.reads})
            for (_, into), here, out in zip(calls, values, found, strict=True):
                given = {name: here[name] for name in piece.reads}
                made = dict(zip(piece.gives, session.run(list(piece.gives), given), strict=True))
                for name in made.keys() & (into or {}).keys():
                    (into or {})[name][...] = made[name]
                    made[name] = (into or {})[name]
                out.update((name, value) for name, value in made.items() if name in wanted)
                here.update(made)
                for name in piece.last:
                    here.pop(name, None)
            del session  # before the next one is made
        return [
            {name: out[name] for name in self._outputs}
            | {place: out[value] for place, value in self.taps.items()}
            for out in found
        ]

    def _session(
        self, number: int, piece: Piece, kinds: Mapping[str, np.dtype[Any]]
    ) -> onnxruntime.InferenceSession:
        if number in self._kept:
            return self._kept[number]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(FOLDER_OPTION, self._folder)
        # An output keeps the memory that its session drew from alive: of an arena, all of it.
        options.enable_cpu_mem_arena = not self.cut
        model = model_of(self._model, piece, kinds)
        if self.cut and largest_widened(model) > WIDENED:
            as_written(options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        if not self.cut:
            self._kept[number] = session
        return session


class Subject:
    """A bundle, opened for a check: graphs of more than `whole` bytes a piece at a time.

    A piece is opened once for as many questions as there is room for caches; the answers are the same.
    """

    def __init__(self, bundle: Bundle, whole: int = WHOLE) -> None:
        self.bundle, self.whole = bundle, whole

    def engine(self, name: str, taps: Callable[[str], bool] = lambda place: False) -> Engine:
        engine = TappedEngine(self.bundle, name, taps, self.whole)
        return Shared(engine) if engine.cut else engine

    def answers(
        self,
        records: Sequence[Question],
        listen: Callable[[Segmenter, Question], Said],
        tell: Callable[[int], None],
    ) -> list[tuple[Said, dict[str, list[Recorded]]]]:
        """What the bundle answers each question, through the runtime, and what went through its graphs.

        tell: how many are answered.
        """
        engines = {name: self.engine(name) for name in GRAPHS}
        cut = any(isinstance(engine, Shared) for engine in engines.values())
        backend: Backend = Opened(engines) if cut else OrtBackend(self.bundle)
        segmenter = None if cut else open_bundle(self.bundle, backend)

        def answer(record: Question) -> tuple[Said, dict[str, list[Recorded]]]:
            # A segmenter answers one question at a time: those that wait for each other have one each.
            twin, notes = noted(segmenter or open_bundle(self.bundle, backend))
            return listen(twin, record), notes.calls

        return each(engines["language"] if cut else None, answer, records, tell)


class Opened:
    """Engines as a backend."""

    name = "onnxruntime-cpu"

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def open(self, graph: str) -> Engine:
        return self._engines[graph]


def each(
    engine: Engine | None,
    function: Callable[[T], R],
    items: Sequence[T],
    tell: Callable[[int], None] = lambda done: None,
) -> list[R]:
    """function(item) of all, in order. engine: the language graph that they call; several call it at once where that
    spares opening its pieces."""
    at_once = abreast(engine) if isinstance(engine, Shared) else 1
    found: list[R] = []
    for start in range(0, len(items), at_once):
        group = items[start : start + at_once]
        if at_once == 1 or len(group) == 1:
            found += [function(item) for item in group]
        else:
            found += carry([lambda item=item: function(item) for item in group])  # type: ignore[misc]
        tell(len(found))
    return found


def abreast(engine: Engine) -> int:
    """Of how many questions the caches are held at once."""
    cache = [tensor for tensor in engine.file.inputs if tensor.name.startswith(CACHE_IN)]
    row = 4 * sum(int(tensor.shape[1]) * int(tensor.shape[3]) for tensor in cache)  # heads, width
    if engine.file.cache == "concat":
        row *= 2  # the old one and the new one
    return max(1, CACHES // (row * POSITIONS))


def read_in_passes(engine: Engine, reading: Reading, whole: bool) -> dict[str, Array]:
    """Outputs of the language graph, one call or several joined: their rows one after another."""
    passes = (reading.whole,) if whole else reading.steps
    context = Context(engine, len(reading.states))
    found: list[dict[str, Array]] = []
    for part in passes:
        out = context.read(reading.states[part.rows], part.asked, reading.visible[part.rows])
        found.append({name: value for name, value in out.items() if not name.startswith("present.")})
    return {name: np.concatenate([out[name] for out in found], axis=1) for name in found[0]}


def read_together(engine: Engine, readings: list[Reading], idle: Mapping[str, Array]) -> dict[str, Array]:
    """The first tokens of several readings, as many as the shortest has, in one batch."""
    count, batch = min(len(r.states) for r in readings), len(readings)
    seen = np.stack([np.tri(count, dtype=np.bool_) & r.visible[:count] for r in readings])
    inputs: dict[str, Array] = {
        "inputs_embeds": np.stack([r.states[:count] for r in readings]),
        "position_ids": np.tile(np.arange(count), (batch, 1)),
        "attn_mask": seen[:, None],
        "write_indices": np.zeros(batch, np.int64),
        **idle,
    }
    rows = count if engine.file.cache == "in_place" else 0
    for tensor in engine.file.inputs:
        if tensor.name.startswith("past."):
            _, heads, _, width = tensor.shape
            inputs[tensor.name] = np.zeros((batch, int(heads), rows, int(width)), np.float32)
    return engine(inputs)
