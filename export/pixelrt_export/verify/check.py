"""`check(bundle, original, records)`: a bundle against its original, boundary by boundary.

    picture ──> encoder ──> tokens ──> language ──> targets ──> pixel_decoder ──> masks
                   └ tower's layers        └ layers, cache, batch

Three kinds of comparison, none of which knows what fault it looks for:

- A graph alone gets the original's own inputs, so that only its own fault shows (`encoder`, `language`,
  `pixel_decoder`).
- A layer alone gets what the bundle had before it, in the bundle and in the original.
- What the runtime does between graphs is compared with what the original makes of the same (`picture`, `tokens`,
  `targets`, `masks`).

And the whole: the bundle answers by itself; the original reads that answer in one pass, a layer at a time. It would
have said the same if each word is its own choice, and its masks for these words are what the bundle's are measured by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pixelrt.bundle import Bundle
from pixelrt.engine import Engine
from pixelrt.engine_ort import SHORTLIST
from pixelrt.recording import Call

from pixelrt_export.verify.comparison import (
    BEST_LIMIT,
    LAYER_LIMITS,
    MASKS_LIMIT,
    PICTURE_LIMIT,
    STAGE_LIMITS,
    TOKENS_LIMIT,
    Finding,
    cosine,
    iou,
    relative_error,
)
from pixelrt_export.verify.original import Arrays, Encoded, Judged, Original, Question, Reading, Said
from pixelrt_export.verify.subject import WHOLE, Subject, each, read_in_passes, read_together

Progress = Callable[[str, int, int], None]
# What the bundle answers, and what went through its graphs.
Listen = Callable[[Question], tuple[Said, dict[str, list[Call]]]]
# The graphs of a language model, of which a bundle may lack the last, and what is said of them.
LANGUAGE_GRAPHS = {
    "language": "",
    "language_compat": " of the compatibility twin",
    SHORTLIST: " of the graph with a shortlist",
}
# Questions whose states after every layer are kept, S x H x layers x 4 bytes each: 180 MB at 7B.
TRACED = 2


def two_best(logits: np.ndarray) -> np.ndarray:
    """(B, R, V) -> (B, R, 2), the largest first."""
    return np.sort(np.partition(logits, -2, axis=-1)[..., -2:], axis=-1)[..., ::-1]


def batch_of(size: int) -> int:
    """How many questions of `size` bytes are put in one batch: two at least, and no more than half a gigabyte."""
    return max(2, (1 << 29) // size)


@dataclass
class Asked:
    """All that is known of one question."""

    record: Question
    inputs: dict[str, np.ndarray]  # of the encoder, the original's
    encoded: Encoded
    said: Said
    calls: dict[str, list[Call]]
    reading: Reading
    states: np.ndarray = field(default_factory=lambda: np.empty(0))  # the original's, after the last layer
    head: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Outcome:
    findings: list[Finding]
    judged: list[Judged]


class Check:
    def __init__(
        self,
        bundle: Bundle,
        original: Original,
        progress: Progress = lambda what, done, total: None,
        first: int = 0,
        listen: Listen | None = None,
        whole: int = WHOLE,
    ) -> None:
        """first: number of the first question in the report. listen: by default the bundle answers, here and now.
        whole: see `Subject`."""
        self.subject, self.original, self._progress, self._first = (
            Subject(bundle, whole),
            original,
            progress,
            first,
        )
        self.precision: dict[str, str] = bundle.manifest["precision"]
        self.findings: list[Finding] = []
        self._listen = listen
        # Question, way of reading -> `two_best` of `language`.
        self._best: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, records: Sequence[Question]) -> Outcome:
        asked = self._answers(records)
        self._encoder(asked)
        self._language(asked)
        judged = self._masks(asked)
        return Outcome(self.findings, judged)

    # ---- the runtime, and what it does between graphs ---------------------------------------------------

    def _answers(self, records: Sequence[Question]) -> list[Asked]:
        if self._listen is not None:
            heard_of = [self._listen(record) for record in records]
        else:
            tell = partial(self._tell, "questions answered", len(records))
            heard_of = self.subject.answers(records, self.original.listen, tell)
        asked = []
        for number, (record, (said, calls)) in enumerate(zip(records, heard_of, strict=True)):
            inputs = self.original.picture(record)
            self._compare("picture", calls["encoder"][-1].inputs, inputs, PICTURE_LIMIT, number)
            heard = self.original.read(record, said, calls["encoder"][-1].outputs["image_tokens"][0])
            embedded = np.concatenate([call.inputs["inputs_embeds"][0] for call in calls["language"]])
            # The last token of an answer is read by nobody.
            self._record(
                "tokens", "embeddings", embedded, heard.states[: len(embedded)], TOKENS_LIMIT, number
            )
            if len(heard.states) - len(embedded) not in (0, 1):
                self._record("tokens", "how many", embedded, heard.states, 0, number)
            if len(calls["language"]) == 1:
                self._compare("tokens", calls["language"][0].inputs, heard.whole.asked, TOKENS_LIMIT, number)
            asked.append(Asked(record, inputs, Encoded({}), said, calls, heard))
        return asked

    def _tell(self, what: str, total: int, done: int) -> None:
        self._progress(what, done, total)

    # ---- encoder ----------------------------------------------------------------------------------------

    def _encoder(self, asked: list[Asked]) -> None:
        engine = self.subject.engine("encoder", taps=lambda place: True)
        limit = STAGE_LIMITS[self.precision["encoder"]]
        taps = self._places("encoder")
        given = []  # before the original's tower is read: together they would be the most that is held
        for number, one in enumerate(asked):
            found = engine(one.inputs)
            given.append(found if number < TRACED else {n: v for n, v in found.items() if n not in taps})
        for number, (one, found) in enumerate(zip(asked, given, strict=True)):
            places = self._tower(one, found, taps, number)
            one.encoded = self.original.encoded(one.inputs, places)
            self._compare("encoder", found, one.encoded.outputs, limit, number)
            one.reading = self.original.read(one.record, one.said, one.encoded.outputs["image_tokens"][0])
            self._progress("pictures encoded", number + 1, len(asked))
        self.original.release()
        batch = asked[: batch_of(sum(value.nbytes for value in given[0].values()))]
        del given, found
        together = {name: np.concatenate([one.inputs[name] for one in batch]) for name in batch[0].inputs}
        wanted = {
            name: np.concatenate([one.encoded.outputs[name] for one in batch])
            for name in batch[0].encoded.outputs
        }
        self._compare("encoder", engine(together), wanted, limit, -1, f" in a batch of {len(batch)}")

    def _tower(self, one: Asked, found: Arrays, taps: Arrays, number: int) -> dict[str, np.ndarray]:
        """The original's states at each place; of the traced questions, each layer alone as well."""
        limit = LAYER_LIMITS[self.precision["encoder"]]
        place, states, steps = self.original.vision(one.inputs)
        places, before = {place: states}, place
        traced = number < TRACED
        if traced and place in taps:
            self._record("encoder", place, found[place].reshape(states.shape), states, limit, number)
        for place, step in steps:
            places[place] = step(places[before])
            if traced and place in taps and before in taps:
                given = found[before].reshape(places[before].shape)
                self._layer("encoder", place, found[place], given, step(given), limit, number)
            before = place
        return places

    # ---- language ---------------------------------------------------------------------------------------

    def _language(self, asked: list[Asked]) -> None:
        states, last = self._layers(asked)
        for x, one in zip(states, asked, strict=True):
            one.states, one.head = x, self.original.head(x, one.reading)
        for name, what in LANGUAGE_GRAPHS.items():
            if name in self.subject.bundle.manifest["graphs"]:
                self._language_graph(name, what, asked, states, last)

    def _layers(self, asked: list[Asked]) -> tuple[list[np.ndarray], str]:
        """The original's states after the last layer, and the name of that place; each layer alone is compared."""
        traces = self._traces(asked)
        states = [one.reading.states for one in asked]
        before, total = "", len(self._places("language"))
        for done, (place, step) in enumerate(self.original.layers(), start=1):
            states = [step(x, one.reading) for x, one in zip(states, asked, strict=True)]
            for number, trace in enumerate(traces):
                given = trace[before][0] if before else asked[number].reading.states
                self._layer(
                    "language",
                    place,
                    trace[place][0],
                    given,
                    step(given, asked[number].reading),
                    LAYER_LIMITS[self.precision["language"]],
                    number,
                )
            before = place
            self._progress("layers compared", done, total)
        return states, before

    def _language_graph(
        self, name: str, what: str, asked: list[Asked], states: list[np.ndarray], last: str
    ) -> None:
        """states: the original's after the last layer, whose place is `last`."""
        engine = self.subject.engine(name, taps=lambda place: place == last)
        limit = STAGE_LIMITS[self.precision["language"]]
        ways = {" in one pass": True, " through the cache": False}

        def read(one: Asked) -> dict[str, Arrays]:
            return {how: read_in_passes(engine, one.reading, whole) for how, whole in ways.items()}

        tell = partial(self._tell, f"questions read{what}", len(asked))
        for number, (one, out) in enumerate(zip(asked, each(engine, read, asked, tell), strict=True)):
            for how, found in out.items():
                self._compare("language", found, one.head, limit, number, how + what)
                if name == "language" and SHORTLIST in self.subject.bundle.manifest["graphs"]:
                    self._best[number, how] = two_best(found["logits"])
                elif name == SHORTLIST:
                    best, wanted = two_best(found["logits"]), self._best[number, how]
                    self._record("language", f"the two best{how}{what}", best, wanted, BEST_LIMIT, number)
        # Keys and values of every layer, in and out.
        layers = len(self._places("language"))
        batch = [one.reading for one in asked[: batch_of(4 * layers * max(x.nbytes for x in states))]]
        shortest = min(len(x) for x in states[: len(batch)])
        found = read_together(engine, batch, self.original.idle(len(batch), shortest))
        together = np.stack([x[:shortest] for x in states[: len(batch)]])
        self._record("language", f"{last} in a batch of {len(batch)}{what}", found[last], together, limit, -1)

    def _traces(self, asked: list[Asked]) -> list[Arrays]:
        """The bundle's states after every layer, for the first questions."""
        engine, places = self.subject.engine("language", taps=lambda place: True), self._places("language")

        def read(one: Asked) -> Arrays:
            found = read_in_passes(engine, one.reading, True)
            return {place: found[place] for place in places}

        return each(engine, read, asked[:TRACED])

    def _places(self, graph: str) -> dict[str, str]:
        """The manifest's: place in the model -> value of the graph."""
        return dict(self.subject.bundle.manifest["graphs"][graph].get("taps", {}))

    # ---- masks ------------------------------------------------------------------------------------------

    def _masks(self, asked: list[Asked]) -> list[Judged]:
        engine = self.subject.engine("pixel_decoder")
        limit = STAGE_LIMITS[self.precision["pixel_decoder"]]
        # What reaches the pixel decoder has gone through both stages before it.
        before = STAGE_LIMITS[self.precision["encoder"]] + STAGE_LIMITS[self.precision["language"]]
        judged, drawn_for = [], []
        for number, one in enumerate(asked):
            targets = self.original.targets(one.reading, one.said, one.head)
            calls = one.calls.get("pixel_decoder", [])
            if (targets is None) != (not calls):
                self._record("targets", "whether there are any", np.array(len(calls)), np.zeros(2), 0, number)
            wanted: list[np.ndarray] = []
            decoded: dict[str, np.ndarray] | None = None
            if targets is not None:
                drawn_for.append((targets, one.encoded))
                decoded = self.original.decoded(targets, one.encoded)
                found = engine({**targets, **one.encoded.outputs})
                self._compare("pixel_decoder", found, decoded, limit, number)
                wanted = self.original.masks(one.record, one.said, decoded)
            if targets is not None and calls:
                self._compare("targets", calls[-1].inputs, targets, before, number)
                redrawn = self.original.masks(one.record, one.said, calls[-1].outputs)
                pairs = zip(one.said.masks, redrawn, strict=False)
                apart = [float((a != b).mean()) if a.shape == b.shape else np.inf for a, b in pairs]
                if len(one.said.masks) != len(redrawn):
                    apart.append(np.inf)
                for error in apart:
                    self._note("masks", "pixels", error, 1.0, MASKS_LIMIT, number)
            count = max(len(wanted), len(one.said.masks))
            ious = [iou(a, b) for a, b in zip(one.said.masks, wanted, strict=False)]
            drawn = calls[-1].outputs if calls else None
            same = self.original.agrees(one.record, one.said, one.head, decoded, drawn)
            others = self.original.otherwise(one.said, one.head)
            judged.append(Judged(same, ious + [0.0] * (count - len(ious)), others))
            self._progress("answers compared", number + 1, len(asked))
        self._together(engine, drawn_for, limit)
        return judged

    def _together(self, engine: Engine, asked: list[tuple[Arrays, Encoded]], limit: float) -> None:
        """Targets of two questions about one picture at once; of one question alone, its own twice."""
        if not asked:
            return
        (first, picture), (second, _) = asked[0], asked[-1]
        if any(first[name].shape[1:] != value.shape[1:] for name, value in second.items()):
            second = first
        both = {name: np.concatenate([value, second[name]]) for name, value in first.items()}
        parts = [self.original.decoded(targets, picture) for targets in (first, second)]
        wanted = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found = engine({**both, **picture.outputs})
        self._compare("pixel_decoder", found, wanted, limit, -1, " of two questions at once")

    # ---- notes ------------------------------------------------------------------------------------------

    def _compare(
        self, stage: str, found: Arrays, wanted: Arrays, limit: float, question: int, how: str = ""
    ) -> None:
        """Each tensor that the original gives."""
        for name, value in wanted.items():
            self._record(stage, name + how, np.asarray(found[name]), value, limit, question)

    def _record(
        self, stage: str, where: str, a: np.ndarray, b: np.ndarray, limit: float, question: int
    ) -> None:
        self._note(stage, where, relative_error(a, b), cosine(a, b), limit, question)

    def _note(self, stage: str, where: str, error: float, alike: float, limit: float, question: int) -> None:
        """question: in this group; -1 is none of them alone."""
        number = question if question < 0 else question + self._first
        self.findings.append(Finding(stage, where, error, alike, limit, number))

    def _layer(
        self,
        stage: str,
        place: str,
        found: np.ndarray,
        given: np.ndarray,
        wanted: np.ndarray,
        limit: float,
        question: int,
    ) -> None:
        """found and wanted: what bundle and original make of the states `given`; measured by what is added to them."""
        if found.size == wanted.size:
            found = found.reshape(wanted.shape)
        added = wanted - given if wanted.shape == given.shape else wanted
        error = relative_error(found, wanted, added)
        self._note(stage, place, error, cosine(found, wanted), limit, question)
