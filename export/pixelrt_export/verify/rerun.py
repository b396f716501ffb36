"""A recorded question once more through its bundle, here: each part alone, given what it was given.

A graph gets the recorded inputs, and its outputs are compared with the recorded ones. What the runtime does between
graphs is run over graphs that give what was recorded, and what it feeds them is compared with what they were fed. So
whatever differs is the doing of the machine that recorded it, at that place. Limits are those of `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pixelrt.bundle import Bundle, GraphFile
from pixelrt.engine import Array, HostMemory
from pixelrt.engine_ort import SHORTLIST
from pixelrt.recording import Call, Recording, plain
from pixelrt.segmenter import open_bundle

from pixelrt_export.verify.comparison import (
    MASKS_LIMIT,
    PICTURE_LIMIT,
    TOKENS_LIMIT,
    Finding,
    cosine,
    relative_error,
)
from pixelrt_export.verify.original import Arrays
from pixelrt_export.verify.recorded import OtherCalls, Outputs, language_outputs, limit_of, reading_of
from pixelrt_export.verify.subject import Subject, read_in_passes

# What the runtime makes before each graph: stage and limit. The ids it puts together are exact.
BETWEEN = {
    "encoder": ("picture", PICTURE_LIMIT),
    "language": ("tokens", TOKENS_LIMIT),
    "pixel_decoder": ("targets", TOKENS_LIMIT),
}


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


# ---- graphs ---------------------------------------------------------------------------------------------


def _encoder(bundle: Bundle, recording: Recording, found: Findings) -> None:
    call = recording.calls["encoder"][0]
    here = Subject(bundle).engine("encoder")(call.inputs)
    for name, value in call.outputs.items():
        found.compare("encoder", name, value, here[name], limit_of(recording, "encoder"))


def _language(bundle: Bundle, recording: Recording, found: Findings) -> None:
    """Row by row: one token of a hundred may be wrong."""
    engine = Subject(bundle).engine(_language_graph(recording.about["graphs"]["language"]))
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


def _language_graph(entry: Mapping[str, Any]) -> str:
    """What ran, or what an engine was made from."""
    if entry.get("cache") == "concat":
        return "language_compat"
    return SHORTLIST if str(entry["file"]).startswith(f"{SHORTLIST}.") else "language"


def _row(word: int, row: int) -> str:
    return f"token {word + 1}" if word >= 0 else f"row {row}"


def _pixel_decoder(bundle: Bundle, recording: Recording, found: Findings) -> None:
    for call in recording.calls.get("pixel_decoder", ()):
        here = Subject(bundle).engine("pixel_decoder")(call.inputs)
        for name, value in call.outputs.items():
            found.compare("pixel_decoder", name, value, here[name], limit_of(recording, "pixel_decoder"))


# ---- between graphs -------------------------------------------------------------------------------------


class Told:
    """A graph that gives what was recorded, and compares what it is given with what it was given."""

    def __init__(self, graph: str, file: GraphFile, calls: Sequence[Call], found: Findings) -> None:
        self.file, self.graph, self.calls, self.found, self.done = file, graph, calls, found, 0
        self.memory = HostMemory()

    def __call__(self, inputs: Arrays, into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        if self.done == len(self.calls):
            raise OtherCalls(self.graph)
        call, self.done = self.calls[self.done], self.done + 1
        stage, limit = BETWEEN[self.graph]
        for name, recorded in call.inputs.items():
            exact = recorded.dtype.kind in "ib"
            self.found.compare(stage, name, recorded, np.asarray(inputs[name]), 0 if exact else limit)
        return dict(call.outputs)

    @property
    def left(self) -> bool:
        return self.done < len(self.calls)


class ToldLanguage:
    """The same of the language graph, by positions: in how many passes a backend reads is its own affair."""

    def __init__(self, file: GraphFile, recording: Recording, found: Findings) -> None:
        self.file = replace(file, cache=None, inputs=())  # no cache: nothing is computed
        self.memory = HostMemory()
        self.reading, self.said, self.found, self.at = reading_of(recording), Outputs(recording), found, 0

    def __call__(self, inputs: Arrays, into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        rows = np.asarray(inputs["inputs_embeds"])[0]
        part = slice(self.at, self.at + len(rows))
        if part.stop > len(self.reading.states):
            raise OtherCalls("language")
        where = f"embeddings at position {part.start + 1}" + (f" to {part.stop}" if len(rows) > 1 else "")
        self.found.compare("tokens", where, self.reading.states[part], rows, TOKENS_LIMIT)
        visible = np.asarray(inputs["attn_mask"])[0, 0, -1, part]
        self.found.compare("tokens", "what may be looked at", self.reading.visible[part], visible, 0)
        if "condition_kind" in inputs:
            kind = self.reading.whole.asked["condition_kind"]
            self.found.compare("tokens", "condition_kind", kind, np.asarray(inputs["condition_kind"]), 0)
        given = self.said(inputs, self.at)
        self.at = part.stop
        return given

    @property
    def left(self) -> bool:
        return self.at < len(self.reading.states)


def _between(bundle: Bundle, recording: Recording, found: Findings) -> None:
    opened: dict[str, Told | ToldLanguage] = {}

    class Backend:
        name = "recorded"

        def open(self, graph: str) -> Told | ToldLanguage:
            file = bundle.graph(graph, activations="float32")
            if graph == "language":
                opened[graph] = ToldLanguage(file, recording, found)
            else:
                opened[graph] = Told(graph, file, recording.calls.get(graph, ()), found)
            return opened[graph]

    segmenter = plain(open_bundle(bundle, Backend()))  # as it was recorded
    query, options = recording.query, recording.about["options"]
    here = segmenter.check(query, recording.picture, **options)
    first_other(found, "here", recording.about["prompt_ids"], here)
    try:
        answer = segmenter.segment(segmenter.encode(recording.picture), query, **options)
    except OtherCalls as other:
        found.note(BETWEEN[str(other)][0], f"how much {other} reads", np.inf, 0)
        return
    for graph, told in opened.items():
        if told.left:
            found.note(BETWEEN[graph][0], f"how much {graph} reads", np.inf, 0)
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
