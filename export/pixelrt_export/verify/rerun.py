"""A recorded question once more through its bundle, here: each part alone, given what it was given.

A graph gets the recorded inputs, and its outputs are compared with the recorded ones. What the runtime does between
graphs is run over graphs that give what was recorded, and what it feeds them is compared with what they were fed. So
whatever differs is the doing of the machine that recorded it, at that place. Limits are those of `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pixelrt.bundle import Bundle, GraphFile
from pixelrt.engine import Array
from pixelrt.errors import InputError
from pixelrt.recording import Call, Recording
from pixelrt.segmenter import open_bundle

from pixelrt_export.verify.comparison import (
    MASKS_LIMIT,
    PICTURE_LIMIT,
    STAGE_LIMITS,
    TOKENS_LIMIT,
    Finding,
    cosine,
    relative_error,
)
from pixelrt_export.verify.original import Arrays, Pass, Reading
from pixelrt_export.verify.subject import TappedEngine, read_in_passes

# What the runtime makes before each graph: stage and limit. The ids it puts together are exact.
BETWEEN = {
    "encoder": ("picture", PICTURE_LIMIT),
    "language": ("tokens", TOKENS_LIMIT),
    "pixel_decoder": ("targets", TOKENS_LIMIT),
}
# Of the language graph's inputs: not asked of it, but where it is.
PLACES = ("inputs_embeds", "position_ids", "attn_mask", "write_indices")


@dataclass
class Findings:
    """In the order they were made."""

    all: list[Finding] = field(default_factory=list)

    def compare(self, stage: str, where: str, recorded: Array, here: Array, limit: float) -> None:
        self.note(stage, where, relative_error(recorded, here), limit, cosine(recorded, here))

    def note(self, stage: str, where: str, error: float, limit: float, alike: float = 1.0) -> None:
        self.all.append(Finding(stage, where, error, alike, limit, -1))


def rerun(
    bundle: Bundle, recording: Recording, progress: Callable[[str, int, int], None] = lambda *_: None
) -> list[Finding]:
    """Recorded against here. The recording must be of this bundle and have its tensors: see `check_fit`."""
    found = Findings()
    for done, part in enumerate((_between, _encoder, _language, _pixel_decoder), start=1):
        part(bundle, recording, found)
        progress("parts run again", done, 4)
    return found.all


def limit_of(recording: Recording, stage: str) -> float:
    """By the precision of the weights; a backend that computes in fp16 is no better than that."""
    limit = STAGE_LIMITS[recording.about["bundle"]["precision"][stage]]
    entry = recording.about["graphs"].get(stage, {})
    return max(limit, STAGE_LIMITS["fp16"]) if entry.get("activations") == "float16" else limit


# ---- graphs ---------------------------------------------------------------------------------------------


def _encoder(bundle: Bundle, recording: Recording, found: Findings) -> None:
    call = recording.calls["encoder"][0]
    here = TappedEngine(bundle, "encoder")(call.inputs)
    for name, value in call.outputs.items():
        found.compare("encoder", name, value, here[name], limit_of(recording, "encoder"))


def _language(bundle: Bundle, recording: Recording, found: Findings) -> None:
    """Row by row: one token of a hundred may be wrong."""
    twin = recording.about["graphs"]["language"].get("cache") == "concat"
    engine = TappedEngine(bundle, "language_compat" if twin else "language")
    here, there = read_in_passes(engine, reading_of(recording), False), language_outputs(recording)
    words = recording.token_ids
    for name, value in there.items():
        wanted = here[name]
        if value.shape != wanted.shape or not value.shape[1]:
            found.compare("language", name, value, wanted, limit_of(recording, "language"))
            continue
        errors = [relative_error(value[:, row], wanted[:, row]) for row in range(value.shape[1])]
        off = [row for row, error in enumerate(errors) if error > limit_of(recording, "language")]
        row = off[0] if off else int(np.argmax(errors))
        where = f"{name}, {_row(row - value.shape[1] + len(words), row) if words else f'row {row}'}"
        alike = cosine(value[:, row], wanted[:, row])
        found.note("language", where, errors[row], limit_of(recording, "language"), alike)


def _row(word: int, row: int) -> str:
    return f"token {word + 1}" if word >= 0 else f"row {row}"


def _pixel_decoder(bundle: Bundle, recording: Recording, found: Findings) -> None:
    for call in recording.calls.get("pixel_decoder", ()):
        here = TappedEngine(bundle, "pixel_decoder")(call.inputs)
        for name, value in call.outputs.items():
            found.compare("pixel_decoder", name, value, here[name], limit_of(recording, "pixel_decoder"))


def reading_of(recording: Recording) -> Reading:
    """The recorded calls of the language graph; `whole` is not known."""
    calls = recording.calls["language"]
    states = np.concatenate([call.inputs["inputs_embeds"][0] for call in calls])
    visible, steps = np.ones(len(states), np.bool_), []
    for call in calls:
        mask = call.inputs["attn_mask"]
        rows = slice(mask.shape[-1] - mask.shape[-2], mask.shape[-1])
        visible[rows] = mask[0, 0, -1, rows]
        asked = {name: value for name, value in call.inputs.items() if name not in PLACES}
        steps.append(Pass(rows, asked))
    return Reading(states, visible, steps[0], tuple(steps))


def language_outputs(recording: Recording) -> dict[str, Array]:
    """Of all calls, rows one after another."""
    calls = recording.calls["language"]
    return {name: np.concatenate([call.outputs[name] for call in calls], axis=1) for name in calls[0].outputs}


# ---- between graphs -------------------------------------------------------------------------------------


class OtherCalls(Exception):
    """The runtime calls a graph once more than it was called."""


class Told:
    """A graph that gives what was recorded, and compares what it is given with what it was given."""

    def __init__(self, graph: str, file: GraphFile, calls: Sequence[Call], found: Findings) -> None:
        self.file = replace(file, cache=None, inputs=())  # no cache: nothing is computed
        self.graph, self.calls, self.found, self.done = graph, calls, found, 0

    def __call__(self, inputs: Arrays, into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        if self.done == len(self.calls):
            raise OtherCalls(self.graph)
        call, self.done = self.calls[self.done], self.done + 1
        stage, limit = BETWEEN[self.graph]
        for name, recorded in call.inputs.items():
            if name != "write_indices":  # of the cache, which is not there
                where = name if len(self.calls) == 1 else f"{name} of pass {self.done}"
                found = np.asarray(inputs.get(name, np.empty(0)))
                self.found.compare(stage, where, recorded, found, 0 if recorded.dtype.kind in "ib" else limit)
        return dict(call.outputs)


def _between(bundle: Bundle, recording: Recording, found: Findings) -> None:
    opened: list[Told] = []

    class Backend:
        name = "recorded"

        def open(self, graph: str) -> Told:
            file = bundle.graph(graph, activations="float32")
            opened.append(Told(graph, file, recording.calls.get(graph, ()), found))
            return opened[-1]

    segmenter = open_bundle(bundle, Backend())
    query, options = recording.query, recording.about["options"]
    here = segmenter.check(query, recording.picture, **options)
    first_other(found, "here", recording.about["prompt_ids"], here)
    try:
        answer = segmenter.segment(segmenter.encode(recording.picture), query, **options)
    except OtherCalls as other:
        found.note(BETWEEN[str(other)][0], f"how many passes of {other}", np.inf, 0)
        return
    for told in opened:
        if told.done != len(told.calls):
            found.note(BETWEEN[told.graph][0], f"how many passes of {told.graph}", np.inf, 0)
    words = list(answer.to_json().get("token_ids", []))
    if words != recording.token_ids:
        pairs = enumerate(zip(words, recording.token_ids, strict=False), start=1)
        at = next((number for number, (here, there) in pairs if here != there), "count")
        found.note("language", f"the choice of token {at} by its logits", np.inf, 0)
    masks = [mask.mask for mask in answer.masks]
    if len(masks) != len(recording.masks):
        found.note("masks", "how many", np.inf, 0)
    for number, (there, here) in enumerate(zip(recording.masks, masks, strict=False), start=1):
        found.note("masks", f"pixels of mask {number}", float((there != here).mean()), MASKS_LIMIT)


def first_other(found: Findings, whose: str, ids: Sequence[int], wanted: Sequence[int]) -> None:
    """The prompt's ids, which must be equal; the first that is not is named."""
    other = [i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b]
    at = other[0] if other else min(len(ids), len(wanted))
    if list(ids) == list(wanted):
        found.note("tokens", "prompt ids", 0, 0)
    else:
        pair = [str(side[at]) if at < len(side) else "none" for side in (ids, wanted)]
        found.note("tokens", f"prompt id {at + 1} ({pair[0]}, {whose} {pair[1]})", np.inf, 0)


# ---- does it fit at all ---------------------------------------------------------------------------------


def check_fit(bundle: Bundle, recording: Recording) -> None:
    """Raises InputError where the recorded tensors are not those of a model of this kind and size."""
    if (family := recording.about["bundle"]["family"]) != bundle.manifest["family"]:
        raise InputError(
            f"the recording is of family {family}, {bundle.path} of {bundle.manifest['family']}. "
            "Give the bundle that it was recorded with."
        )
    if set(recording.about["bundle"]["precision"].values()) - set(STAGE_LIMITS):
        raise InputError("the recording names a precision that this pixelrt does not know. Upgrade pixelrt.")
    for name, calls in recording.calls.items():
        graph = bundle.manifest["graphs"][name]
        inputs = [t for t in graph["inputs"] if not t["name"].startswith(("past.", "write_indices"))]
        outputs = [t for t in graph["outputs"] if not t["name"].startswith("present.")]
        for call in calls:
            sizes: dict[str, int] = {"B": 1}
            for tensors, there in ((inputs, call.inputs), (outputs, call.outputs)):
                for tensor in tensors:
                    _fit(name, tensor["name"], tensor["shape"], there.get(tensor["name"]), sizes)
    length = 0
    for call in recording.calls["language"]:
        rows = call.inputs["inputs_embeds"].shape[1]
        length += rows
        asked = [v for n, v in call.inputs.items() if n in ("logit_rows", "query_rows")]
        if call.inputs["attn_mask"].shape[-1] != length or any(((v < 0) | (v >= rows)).any() for v in asked):
            raise InputError("the recording's passes of language do not follow one another. Record it again.")


def _fit(
    graph: str, name: str, shape: Sequence[int | str], array: Array | None, sizes: dict[str, int]
) -> None:
    got = None if array is None else array.shape
    fits = got is not None and len(got) == len(shape)
    for side, wanted in zip(got or (), shape, strict=False):
        fits &= side == (sizes.setdefault(wanted, side) if isinstance(wanted, str) else wanted)
    if not fits:
        raise InputError(
            f"the recording's {name} of {graph} has shape {got}, this bundle's {list(shape)}. "
            "Give the bundle that it was recorded with."
        )
