"""`replay(bundle, original, recording)`: where a recorded answer goes wrong, and whose doing it is.

    the recording ── the bundle, here ── the checkpoint
              machine             bundle

A stage at which the recording differs from what its own bundle gives here for the same inputs is the doing of the
machine that recorded it (`rerun`). One at which the bundle here differs from the checkpoint is the bundle's (`check`,
over the recorded answer). Where neither differs the model itself says so. With another bundle at hand than the one
that was recorded, the recording is compared with the checkpoint alone, and the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.prompt import read_tokenizer
from pixelrt.queries import Query, Refer
from pixelrt.recording import Recording

from pixelrt_export.verify.bundle import verify_bundle
from pixelrt_export.verify.check import Outcome
from pixelrt_export.verify.comparison import (
    MASKS_LIMIT,
    PICTURE_LIMIT,
    TOKENS_LIMIT,
    Finding,
    iou,
)
from pixelrt_export.verify.original import Judged, Original, Otherwise, Said
from pixelrt_export.verify.recorded import (
    OtherCalls,
    Outputs,
    check_fit,
    drawn_at_once,
    limit_of,
    reading_of,
)
from pixelrt_export.verify.report import STAGES, Report, Thresholds
from pixelrt_export.verify.rerun import Findings, first_other, rerun

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """The recorded question, as `original.Question`."""

    image: np.ndarray
    prompt: str
    query: Query | None

    @classmethod
    def of(cls, recording: Recording, original: Original) -> Asked:
        asked = recording.query
        if original.typed:
            return cls(recording.picture, "", Refer(asked) if isinstance(asked, str) else asked)
        if not isinstance(asked, str):
            raise InputError(
                f"the recording asks a {type(asked).__name__}, its model words. Record it again."
            )
        return cls(recording.picture, asked, None)


@dataclass(frozen=True)
class Replay:
    """machine: the recording against its bundle here, empty with another bundle. report: against the checkpoint."""

    recording: Recording
    bundle: Bundle
    machine: list[Finding]
    report: Report

    @property
    def same_bundle(self) -> bool:
        return bool(self.recording.about["bundle"]["sha256"] == self.bundle.sha256)

    @property
    def fault(self) -> tuple[str, Finding | None]:
        """Whose doing: `machine`, `bundle`, `machine or bundle`, `precision`, `model`; and the first finding."""
        faults = [(STAGES.index(f.stage), 0, f) for f in self.machine if not f.passed]
        faults += [(STAGES.index(f.stage), 1, f) for f in self.report.faults]
        if faults:
            _, whose, first = min(faults, key=lambda fault: fault[:2])
            if not self.same_bundle:
                return "machine or bundle", first
            return ("machine", "bundle")[whose], first
        enough = self.report.iou >= self.report.thresholds.min_iou
        return ("model" if enough and self._same() else "precision"), None

    def _same(self) -> bool:
        """But for tokens that no model chose: a run of codebook tokens, once begun, was completed."""
        return all(one.same or (one.others and not self._chosen(one)) for one in self.report.outcome.judged)

    def _chosen(self, judged: Judged) -> list[Otherwise]:
        """Words that the recorded model chose itself, and the checkpoint would not have said."""
        steps = self.recording.about["steps"]
        forced = [n for n, step in enumerate(steps, start=1) if step["best"] != step["token"]]
        return [other for other in judged.others if other.number not in forced]

    def sentence(self) -> str:
        whose, first = self.fault
        masks = sum(len(one.ious) for one in self.report.outcome.judged)
        alike = f"mean IoU {self.report.iou:.4f} of {masks} masks"
        if first is None and whose == "model":
            return f"model: no stage diverges, and the checkpoint gives the same answer ({alike})"
        told = self._told()
        if first is None:
            kinds = ", ".join(sorted(set(self.recording.about["bundle"]["precision"].values())))
            return (
                f"precision: no stage is further off than {kinds} explains, but the checkpoint answers otherwise: "
                f"{told or alike}. Export with more bits"
            )
        off = f"in {first.stage}, {first.where} is off by {first.error:.2g}, where {first.limit:g} can be explained"
        about, machine = self.recording.about, self.recording.about["machine"]
        where = f"{about['backend']} on {machine.get('machine', 'an unknown machine')}"
        if whose == "machine":
            return (
                f"machine: {off}, from what this bundle gives here for the same input. Look at what recorded it: "
                f"{where}, its driver and its memory"
            )
        if whose == "bundle":
            return f"bundle: {off}, from the checkpoint; here as there. {told + '. ' if told else ''}Export it again"
        return (
            f"machine or bundle: {off}, from the checkpoint, in what {where} recorded. To tell which, replay with the "
            f"bundle {about['bundle']['name']} of SHA-256 {about['bundle']['sha256']}"
        )

    def other_bundle(self) -> str | None:
        """What to say where the recording is not of this bundle."""
        if self.same_bundle:
            return None
        there = self.recording.about["bundle"]
        return (
            f"recorded with another bundle, {there['name']} ({there['sha256'][:12]}…), not with this one "
            f"({self.bundle.sha256[:12]}…): compared with the checkpoint alone"
        )

    def _told(self) -> str:
        """The first word that the checkpoint would not have said."""
        others = [other for one in self.report.outcome.judged for other in self._chosen(one)]
        return self._words(others[0]) if others else ""

    def _words(self, other: Otherwise) -> str:
        tokenizer = read_tokenizer(self.bundle.file(self.bundle.manifest["tokens"]["tokenizer"]))
        said, instead = (repr(tokenizer.id_to_token(token)) for token in (other.said, other.instead))
        steps = self.recording.about["steps"]
        margin = (
            f", {steps[other.number - 1]['margin']:.3g} ahead there" if other.number <= len(steps) else ""
        )
        return (
            f"token {other.number} is {said}{margin}; the checkpoint says {instead}, {other.ahead:.3g} ahead"
        )

    def to_json(self) -> dict[str, Any]:
        whose, first = self.fault
        return {
            "fault": whose,
            "verdict": self.sentence(),
            "first": None if first is None else first.to_json(),
            "same_bundle": self.same_bundle,
            "recorded": {
                key: self.recording.about[key] for key in ("bundle", "machine", "backend", "options")
            },
            "machine": [finding.to_json() for finding in self.machine],
            "checkpoint": self.report.to_json(),
        }


def replay(
    bundle: Bundle,
    original: Original,
    recording: Recording,
    thresholds: Thresholds | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Replay:
    """Raises InputError where the recording does not fit the bundle, or the bundle the checkpoint."""
    check_fit(bundle, recording)
    recording = drawn_at_once(recording)
    said, asked = Said(recording.token_ids, recording.masks), Asked.of(recording, original)
    if recording.about["bundle"]["sha256"] != bundle.sha256:
        outcome = against(original, recording, asked, said)
        report = Report(outcome, thresholds or Thresholds(), recording.about["bundle"]["precision"])
        return Replay(recording, bundle, [], report)
    machine = rerun(bundle, recording, progress)
    report = verify_bundle(
        bundle.path, original, [asked], thresholds, progress, lambda _: (said, recording.calls)
    )
    found = Findings(report.outcome.findings)
    first_other(found, "the checkpoint's", recording.about["prompt_ids"], original.ids(asked))
    return Replay(recording, bundle, machine, report)


def against(original: Original, recording: Recording, asked: Asked, said: Said) -> Outcome:
    """The recording and the checkpoint. What goes through several stages may be as far off as all of them together."""
    found = Findings()
    encode, decode = recording.calls["encoder"][0], recording.calls.get("pixel_decoder", [])
    for name, value in original.picture(asked).items():
        found.compare("picture", name, encode.inputs[name], value, PICTURE_LIMIT)
    place, states, layers = original.vision(encode.inputs)
    places, before = {place: states}, place
    for place, step in layers:
        places[place], before = step(places[before]), place
    encoded = original.encoded(encode.inputs, places)
    for name, value in encoded.outputs.items():
        found.compare("encoder", name, encode.outputs[name], value, limit_of(recording, "encoder"))

    first_other(found, "the checkpoint's", recording.about["prompt_ids"], original.ids(asked))
    reading = original.read(asked, said, encode.outputs["image_tokens"][0])
    embedded = reading_of(recording).states
    found.compare("tokens", "embeddings", embedded, reading.states[: len(embedded)], TOKENS_LIMIT)
    states = reading.states
    for _, layer in original.layers():
        states = layer(states, reading)
    head = original.head(states, reading)
    try:
        outputs = Outputs(recording)(reading.whole.asked, 0)
    except OtherCalls:
        found.note("tokens", "how much language reads", np.inf, 0)
        outputs = head
    for name, value in head.items():
        found.compare("language", name, outputs[name], value, limit_of(recording, "language"))

    targets, given = original.targets(reading, said, outputs), original.targets(reading, said, head)
    if (targets is None) != (not decode):
        found.note("targets", "whether there are any", np.inf, 0)
    drawn = decode[-1].outputs if decode else None
    decoded = original.decoded(given, encoded) if given is not None else None
    if targets is not None and decode:
        for name, value in targets.items():
            found.compare("targets", name, decode[-1].inputs[name], value, TOKENS_LIMIT)
        alone = original.decoded({name: decode[-1].inputs[name] for name in targets}, encoded)
        limit = limit_of(recording, "encoder") + limit_of(recording, "pixel_decoder")
        for name, value in alone.items():
            found.compare("pixel_decoder", name, decode[-1].outputs[name], value, limit)
        redrawn = original.masks(asked, said, decode[-1].outputs)
        if len(redrawn) != len(said.masks):
            found.note("masks", "how many", np.inf, 0)
        for number, (a, b) in enumerate(zip(said.masks, redrawn, strict=False), start=1):
            found.note("masks", f"pixels of mask {number}", float((a != b).mean()), MASKS_LIMIT)
    wanted = original.masks(asked, said, decoded) if decoded is not None else []
    ious = [iou(a, b) for a, b in zip(said.masks, wanted, strict=False)]
    ious += [0.0] * (max(len(wanted), len(said.masks)) - len(ious))
    same = original.agrees(asked, said, head, decoded, drawn)
    return Outcome(found.all, [Judged(same, ious, original.otherwise(said, head))])
