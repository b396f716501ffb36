"""A recording as `verify` reads it: what the language model read and gave, by position; whether it fits a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pixelrt.bundle import Bundle
from pixelrt.engine import Array
from pixelrt.errors import InputError
from pixelrt.recording import Call, Recording

from pixelrt_export.verify.comparison import STAGE_LIMITS
from pixelrt_export.verify.original import Arrays, Pass, Reading

# Of the language graph's inputs: not asked of it, but where it is.
PLACES = ("inputs_embeds", "position_ids", "attn_mask", "write_indices")


def limit_of(recording: Recording, stage: str) -> float:
    """By the precision of the weights; a backend that computes in fp16 is no better than that."""
    limit = STAGE_LIMITS[recording.about["bundle"]["precision"][stage]]
    entry = recording.about["graphs"].get(stage, {})
    return max(limit, STAGE_LIMITS["fp16"]) if entry.get("activations") == "float16" else limit


def reading_of(recording: Recording) -> Reading:
    """The recorded calls of the language graph; `whole` is not known: the first of them stands there."""
    calls = recording.calls["language"]
    states = np.concatenate([call.inputs["inputs_embeds"][0] for call in calls])
    visible, steps, start = np.ones(len(states), np.bool_), [], 0
    for call in calls:
        # A backend may look at more than there is, all of it masked.
        rows = slice(start, start + call.inputs["inputs_embeds"].shape[1])
        visible[rows], start = call.inputs["attn_mask"][0, 0, -1, rows], rows.stop
        asked = {name: value for name, value in call.inputs.items() if name not in PLACES}
        steps.append(Pass(rows, asked))
    return Reading(states, visible, steps[0], tuple(steps))


def language_outputs(recording: Recording) -> dict[str, Array]:
    """Of all calls, rows one after another."""
    calls = recording.calls["language"]
    return {name: np.concatenate([call.outputs[name] for call in calls], axis=1) for name in calls[0].outputs}


class OtherCalls(Exception):
    """The runtime asks a graph for what was not asked of it."""


class Outputs:
    """What was recorded of the language graph's outputs, by the positions that were asked for."""

    # Output -> the input that asks for its rows. A row of `pool` that is all zeros asks for nothing.
    ASKED: ClassVar = {
        "logits": "logit_rows",
        "hidden": "logit_rows",
        "queries": "query_rows",
        "conditions": "pool",
    }

    def __init__(self, recording: Recording) -> None:
        self.rows: dict[str, dict[int, Array]] = {}
        start = 0
        for call in recording.calls["language"]:
            for name, values in call.outputs.items():
                known = self.rows.setdefault(name, {})
                for place, row in zip(self._places(name, call.inputs, start), values[0], strict=True):
                    if place >= 0:
                        known[len(known) if name == "conditions" else place] = row
            start += call.inputs["inputs_embeds"].shape[1]
        self.conditions = 0

    def __call__(self, asked: Arrays, start: int) -> dict[str, Array]:
        """Outputs (1, R, …) for what is asked of a pass that begins at position `start`."""
        found = {}
        for name, known in self.rows.items():
            places = self._places(name, asked, start)
            if name == "conditions":
                real = [place >= 0 for place in places]
                places = [self.conditions + sum(real[:i]) if it else -1 for i, it in enumerate(real)]
                self.conditions += sum(real)
            blank = np.zeros_like(next(iter(known.values()), np.zeros(0, np.float32)))
            if name != "queries" and any(place >= 0 and place not in known for place in places):
                raise OtherCalls("language")
            rows = [known.get(place, blank) for place in places]
            found[name] = np.stack(rows)[None] if rows else np.zeros((1, 0, *blank.shape), blank.dtype)
        return found

    def _places(self, name: str, asked: Arrays, start: int) -> list[int]:
        """Of each row asked for; -1 for none."""
        value = np.asarray(asked[self.ASKED[name]])
        if self.ASKED[name] == "pool":
            return [0 if row.any() else -1 for row in value[0]]
        return [start + int(row) for row in value]


def drawn_at_once(recording: Recording) -> Recording:
    """Targets that a backend drew in several runs of the pixel decoder, as one run."""
    calls = recording.calls.get("pixel_decoder", [])
    if len(calls) < 2:
        return recording

    def joined(tensors: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {name: _joined([each[name] for each in tensors]) for name in tensors[0]}

    whole = Call(joined([call.inputs for call in calls]), joined([call.outputs for call in calls]))
    return replace(recording, calls={**recording.calls, "pixel_decoder": [whole]})


def _joined(parts: Sequence[Array]) -> Array:
    """What belongs to the picture is the same each time."""
    same = all(part is parts[0] for part in parts)
    return parts[0] if same else np.concatenate(parts)


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
        if call.inputs["attn_mask"].shape[-1] < length or any(((v < 0) | (v >= rows)).any() for v in asked):
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
